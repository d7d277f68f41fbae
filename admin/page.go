package admin

import (
	"bytes"
	"embed"
	"path"

	"github.com/valyala/fasthttp"
)

// web is the page: plain files, and uPlot 1.6.32 (MIT) for the charts.
//
//go:embed web
var web embed.FS

// pageTypes are the files that are served, by their ending.
var pageTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
}

// contentPolicy lets the page load and ask nothing but this listener.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// isPage says whether a path is of the page. It holds nothing secret: with
// admin.token set anybody may load it, as a browser can't send the token before it
// has asked for it; what it shows it asks with the token.
func isPage(path []byte) bool {
	return string(path) == "/admin/" || bytes.HasPrefix(path, []byte("/admin/web/"))
}

// page answers GET /admin/.
func (s *Server) page(x *exchange) {
	if x.takesNoParams() {
		x.answerFile("index.html")
	}
}

// asset answers GET /admin/web/{file}.
func (s *Server) asset(x *exchange) {
	if x.takesNoParams() {
		x.answerFile(string(x.rest))
	}
}

func (x *exchange) answerFile(name string) {
	kind := pageTypes[path.Ext(name)]
	body, err := web.ReadFile("web/" + name)
	if kind == "" || err != nil {
		x.refuse(fasthttp.StatusNotFound, "there is nothing here")
		return
	}
	x.answer(fasthttp.StatusOK, body)
	h := &x.ctx.Response.Header
	h.SetContentType(kind)
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
}
