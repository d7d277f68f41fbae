package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// warningsOf is what is legal in c but surely wrong, in the file's order. A
// section that has errors, which are the problems, is not judged: it may not say what
// is meant.
func warningsOf(c *Config, doc document, problems []problem) (all []problem) {
	w := warner{c, doc, func(path, text string) {
		found := doc.problem(path, text)
		found.severity = isWarning
		all = append(all, found)
	}}
	isSound := func(section string) bool {
		return !slices.ContainsFunc(problems, func(p problem) bool { return p.covers(section) })
	}
	w.clearText()
	if isSound("limiter") {
		c.Limiter.Warn(func(path, text string) { w.warn("limiter."+path, text) })
	}
	if isSound("proxy") {
		c.Proxy.Warn(func(path, text string) { w.warn("proxy."+path, text) })
	}
	if isSound("limiter") && isSound("proxy") {
		w.names()
	}
	slices.SortStableFunc(all, comparePlaces)
	return all
}

// logWarnings says what is surely wrong in the file.
func (c *Config) logWarnings(log zerolog.Logger, file string) {
	for _, each := range c.warnings {
		log.Warn().Str("place", fmt.Sprintf("%s:%d:%d", file, each.line, each.col)).Str("key", each.path).
			Msg("surely wrong in the configuration: " + each.text)
	}
}

// inOrder are errors and warnings as they stand in the file.
func inOrder(errors, warnings []problem) []problem {
	all := slices.Concat(errors, warnings)
	slices.SortStableFunc(all, comparePlaces)
	return all
}

// warner looks for what only the whole configuration and its file show.
type warner struct {
	*Config
	document
	warn func(path, text string)
}

// names warns of resources and plans that routes name and the limiter lacks, or the
// other way round.
func (w *warner) names() {
	asked := map[string]bool{} // the resources that routes ask for
	any := false               // some route lets a request name it
	for i := range w.Proxy.Routes {
		if name, fixed := resourceOf(&w.Proxy.Routes[i]); fixed {
			asked[name] = true
		} else {
			any = true
		}
	}
	for i := range w.Proxy.Routes {
		rt := &w.Proxy.Routes[i]
		if rt.Action == "" || rt.Action == "limit" {
			path := fmt.Sprintf("proxy.routes[%d]", i)
			w.resource(path, rt, asked)
			w.plan(path, rt)
			w.cost(path, rt)
		}
	}
	w.keyPlans()
	if !any && len(w.Proxy.Routes) > 0 {
		w.unusedPlans(asked)
	}
}

// resourceOf is the resource that a route asks for; fixed says that it is the same
// for all requests.
func resourceOf(rt *proxy.RouteConfig) (name string, fixed bool) {
	text := rt.Resource.String()
	if text == "" {
		text = rt.Name
	}
	return text, isFixed(text)
}

// isFixed says whether a template has no placeholder.
func isFixed(template string) bool { return !strings.Contains(template, "{") }

// resource warns of a resource without limits of its own whose name is a slip away
// from one that has. A route's name is that only if nobody else asks for the other.
func (w *warner) resource(path string, rt *proxy.RouteConfig, asked map[string]bool) {
	name, fixed := resourceOf(rt)
	if _, known := w.Limiter.Resources[name]; known || !fixed {
		return
	}
	near, ok := meantBy(name, sortedKeys(w.Limiter.Resources))
	key := ".resource"
	if rt.Resource.String() == "" {
		key, ok = ".name", ok && !asked[near]
	}
	if ok {
		w.warn(path+key, fmt.Sprintf("resource %q is none of limiter.resources, so that limiter.default holds; did you mean %q?", name, near))
	}
}

// meantBy is the known name that name is a slip away from, unless they differ in
// a number, or are so short that they may well be two names.
func meantBy(name string, known []string) (string, bool) {
	near, ok := limiter.Nearest(name, known)
	return near, ok && len(name) > 3 && digits(name) == digits(near)
}

func digits(name string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, name)
}

// plan warns of a plan that changes nothing, and of a cost that no request of some
// plan can pay.
func (w *warner) plan(path string, rt *proxy.RouteConfig) {
	plan := rt.Plan.String()
	_, known := w.Limiter.Plans[plan]
	switch {
	case plan == "":
		return
	case len(w.Limiter.Plans) == 0 || isFixed(plan) && !known:
		w.warn(path+".plan", noPlan(plan, w.Limiter.Plans))
		return
	}
	resource, fixed := resourceOf(rt)
	cost, err := strconv.ParseInt(rt.Cost.String(), 10, 64)
	if !fixed || err != nil || rt.Shadow {
		return
	}
	for _, name := range sortedKeys(w.Limiter.Plans) {
		limits, ok := w.Limiter.Plans[name][resource]
		if most := limits.Smallest(); ok && cost > most && (name == plan || !isFixed(plan)) {
			w.warn(path+".cost", fmt.Sprintf("is %d, but in plan %s resource %s holds %d tokens at most: no request of that plan can ever pass", cost, name, resource, most))
		}
	}
}

// placeholderText is a placeholder of a template.
var placeholderText = regexp.MustCompile(`\{[^{}]*\}`)

// cost warns of a fixed cost that no resource holds which a template may name.
func (w *warner) cost(path string, rt *proxy.RouteConfig) {
	template, fixed := resourceOf(rt)
	cost, err := strconv.ParseInt(rt.Cost.String(), 10, 64)
	if fixed || err != nil || rt.Shadow || rt.Enforce.IsNone() || cost <= w.Limiter.Default.Smallest() {
		return
	}
	if most := w.mostOf(template, rt); cost > most {
		w.warn(path+".cost", fmt.Sprintf("is %d, but whatever resource %s names holds %d tokens at most: no request can ever pass", cost, template, most))
	}
}

// mostOf is what the resources hold at most that a route's template may name: those
// that are configured and have its literal parts, else the default. A template that
// comes to nothing names the route.
func (w *warner) mostOf(template string, rt *proxy.RouteConfig) int64 {
	most, fits := w.Limiter.Default.Smallest(), fittingNames(template)
	tables := []map[string]limiter.ResourceConfig{w.Limiter.Resources}
	if rt.Plan.String() != "" {
		tables = slices.AppendSeq(tables, maps.Values(w.Limiter.Plans))
	}
	for _, table := range tables {
		for name, limits := range table {
			if name == rt.Name || fits.MatchString(name) {
				most = max(most, limits.Smallest())
			}
		}
	}
	return most
}

// fittingNames matches what a template may come to.
func fittingNames(template string) *regexp.Regexp {
	literal := placeholderText.Split(template, -1)
	for i := range literal {
		literal[i] = regexp.QuoteMeta(literal[i])
	}
	return regexp.MustCompile(`\A(?s:` + strings.Join(literal, ".+") + `)\z`)
}

// keyPlans warns of plans of API keys that are none, of each once. Where they stand for
// something else too there is nothing to say.
func (w *warner) keyPlans() {
	if w.Proxy.APIKeys == nil || slices.ContainsFunc(w.Proxy.Routes, readsPlanElsewhere) {
		return
	}
	told := map[string]bool{"": true}
	for i, key := range w.Proxy.APIKeys.Keys {
		if _, known := w.Limiter.Plans[key.Plan]; known || told[key.Plan] {
			continue
		}
		told[key.Plan] = true
		w.warn(fmt.Sprintf("proxy.api_keys.keys[%d].plan", i), noPlan(key.Plan, w.Limiter.Plans))
	}
}

// readsPlanElsewhere says whether a route reads {api_key.plan} for anything but its plan.
func readsPlanElsewhere(rt proxy.RouteConfig) bool {
	return slices.ContainsFunc(append(slices.Clone(rt.UserID), rt.Resource, rt.Cost), func(t proxy.Template) bool {
		return strings.Contains(t.String(), "{api_key.plan")
	})
}

// noPlan is what to say of the name of a plan that is none.
func noPlan(name string, plans map[string]map[string]limiter.ResourceConfig) string {
	if len(plans) == 0 {
		return "changes nothing: limiter.plans is empty; add plans there, or take this out"
	}
	return fmt.Sprintf("plan %q is none of limiter.plans, so that it changes nothing%s", name, limiter.DidYouMean(name, sortedKeys(plans)))
}

// unusedPlans warns of plans' resources that nobody asks for. asked are those that
// the routes do.
func (w *warner) unusedPlans(asked map[string]bool) {
	known := slices.Concat(sortedKeys(w.Limiter.Resources), sortedKeys(asked)) // one that is configured is no slip
	for plan, resources := range w.Limiter.Plans {
		for name := range resources {
			if !slices.Contains(known, name) {
				w.warn("limiter.plans."+plan+"."+name, fmt.Sprintf(
					"no route asks for resource %q, and limiter.resources has none of that name%s", name, limiter.DidYouMean(name, known)))
			}
		}
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
