package main

import (
	"github.com/r8limiter/r8limiter/admin"
	"github.com/r8limiter/r8limiter/proxy"
)

// newJudge makes what judges requests that other proxies describe at /check, each
// by the rules in force.
func (g *gateway) newJudge() admin.Judge {
	asked, judged := new(proxy.Asked), new(proxy.Judgement)
	return func(d *admin.Described, v *admin.Verdict) {
		asked.Reset()
		asked.Method, asked.Target, asked.Host = d.Method, d.Target, d.Host
		asked.Peer, asked.Secure = d.Peer, d.Secure
		asked.Believed = true // who asks has the client's connection, and says whose it is
		for i := range d.Fields {
			asked.AddField(d.Fields[i].Name, d.Fields[i].Value)
		}
		g.rules.Load().Judge(asked, judged)
		*v = admin.Verdict{
			Refused: judged.Refused, Status: judged.Status, Challenge: judged.Challenge,
			Route: judged.Route, Client: judged.Client, Charged: judged.Charged, Ask: judged.Ask, Outcomes: judged.Outcomes,
		}
	}
}
