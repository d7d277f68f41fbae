package admin

import (
	"context"
	"encoding/json"

	"github.com/valyala/fasthttp"

	"github.com/r8limiter/r8limiter/limiter"
)

// Terms are what Settings need besides the Config of this package.
type Terms struct {
	// LogRequests is "all", "denied" (every answer from 400 on) or "none".
	LogRequests string
	// Config is what GET /admin/config shows, without secrets.
	Config any
}

// Settings are what of a configuration may be replaced while the server runs. They
// are not changed.
type Settings struct {
	adminGuard, allowGuard guard
	readyWhenDegraded      bool
	terms                  Terms
}

// NewSettings makes of a configuration that has been validated what Commit puts in
// force. It has no side effect.
func NewSettings(c Config, t Terms) *Settings {
	return &Settings{
		adminGuard: newGuard(c.Token), allowGuard: newGuard(c.AllowToken),
		readyWhenDegraded: c.ReadyWhenDegraded, terms: t,
	}
}

// Commit puts n in force for every request that is judged from now on. It can't fail.
func (s *Server) Commit(n *Settings) { s.settings.Store(n) }

// Reloaded is what became of a reload of the configuration.
type Reloaded struct {
	// Refused says why it was not tried; "" where it was.
	Refused string
	// Problems are why all stays as it was; none where the file is in force.
	Problems []Problem
	// Changed says that something is in force now that was not before.
	Changed bool
	// NeedsRestart are the keys whose values wait for a restart.
	NeedsRestart []string
	// Warnings are what is surely wrong in a file that is in force all the same.
	Warnings []Problem
}

// Problem is a fault of the configuration file.
type Problem struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Path    string `json:"path"` // "" for the file as a whole
	Message string `json:"message"`
}

// reload answers POST /admin/reload, when it is done.
func (s *Server) reload(x *exchange) {
	if !x.takesNoParams() {
		return
	}
	r := s.Reload()
	switch {
	case r.Refused != "":
		x.refuse(fasthttp.StatusConflict, r.Refused)
	case len(r.Problems) > 0:
		s.recordReload(x, &r)
		x.answerProblems(r.Problems)
	default:
		s.recordReload(x, &r)
		x.answerJSON(struct {
			Reloaded     bool      `json:"reloaded"`
			Changed      bool      `json:"changed"`
			NeedsRestart []string  `json:"needs_restart"`
			Warnings     []Problem `json:"warnings,omitempty"`
		}{true, r.Changed, append([]string{}, r.NeedsRestart...), r.Warnings}) // never null
	}
}

func (x *exchange) answerProblems(problems []Problem) {
	body, err := json.Marshal(struct {
		Error    string    `json:"error"`
		Problems []Problem `json:"problems"`
	}{"the configuration can't be put in force: the old one stays as it is", problems})
	if err != nil {
		panic(err)
	}
	x.answer(fasthttp.StatusUnprocessableEntity, body)
}

// reloadDetail is what the audit trail tells of a reload.
type reloadDetail struct {
	Result       string   `json:"result"` // applied or failed
	NeedsRestart []string `json:"needs_restart,omitempty"`
	Problems     int      `json:"problems,omitempty"` // how many; the answer and the log say which
}

// recordReload leaves an entry in the audit trail, unless nothing had changed: who asks
// each minute would leave no other. The reload is over by then, and stays as it is where the store takes no entry; only
// the answer waits for the store, probeTimeout at most.
func (s *Server) recordReload(x *exchange, r *Reloaded) {
	detail := reloadDetail{Result: "applied", NeedsRestart: r.NeedsRestart, Problems: len(r.Problems)}
	switch {
	case len(r.Problems) > 0:
		detail.Result = "failed"
	case !r.Changed:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	e := limiter.AuditEntry{Action: "config.reload", Detail: detail}
	if err := s.Limiter.Record(ctx, e, s.actor(x)); err != nil {
		s.Log.Warn().Err(err).Msg("the reload is missing in the audit trail")
	}
}
