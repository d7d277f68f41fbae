package proxy

import (
	"fmt"
	"strings"
)

// warnOfOpenRoots reports /x/* of a route that blocks where a later one takes /x,
// which is not of that pattern. It errs to the side of saying nothing: the later
// route alone takes every request to /x that the earlier ones leave.
func (c *Config) warnOfOpenRoots(warn func(path, text string)) {
	for i := range c.Routes {
		rt := &c.Routes[i]
		if actions[rt.Action] != blockAction {
			continue
		}
		for p, text := range rt.Match.Path {
			root, found := strings.CutSuffix(text, "/*")
			if !found || root == "" {
				continue
			}
			if by := c.takerOfRoot(i, root); by != "" {
				warn(fmt.Sprintf("routes[%d]%s", i, elementOf(".match.path", rt.Match.Path, p)),
					fmt.Sprintf("%s is not of %s, so that route %s takes it; write both, as in path: [%q, %q]", root, text, by, root, text))
			}
		}
	}
}

// takerOfRoot is the route behind route i that does not block, and takes what that
// one would if it had the path root; "" if there is none.
func (c *Config) takerOfRoot(i int, root string) string {
	wanted := c.Routes[i]
	wanted.Match.Path = []string{root}
	before := &takers{}
	for j := range c.Routes {
		rt, own := &c.Routes[j], &takers{}
		if j > i && actions[rt.Action] != blockAction && own.addAll(rt) == nil {
			open, _ := before.waysOf(&wanted)
			taken, _ := own.waysOf(&wanted)
			for k := range open {
				if len(open[k].takenBefore) == 0 && len(taken[k].takenBefore) > 0 {
					return rt.Name
				}
			}
		}
		if before.addAll(rt) != nil {
			return "" // reported as an error
		}
	}
	return ""
}
