package simulate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// read is what a parser makes of a line, in words.
func read(parse parser, raw string) string {
	var l line
	l.reset()
	if err := parse([]byte(raw), &l); err != nil {
		return "error: " + err.Error()
	}
	return l.describe()
}

func (l *line) describe() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s %s %s", time.UnixMicro(l.at).UTC().Format(time.RFC3339Nano), l.client, l.method)
	add := func(name string, value []byte) {
		if len(value) > 0 {
			fmt.Fprintf(&out, " %s=%q", name, value)
		}
	}
	add("target", l.target)
	add("host", l.host)
	if l.secure {
		out.WriteString(" secure")
	}
	if l.direct {
		out.WriteString(" direct")
	}
	if l.replayed {
		out.WriteString(" replayed")
	}
	if l.refused > 0 {
		fmt.Fprintf(&out, " refused=%d", l.refused)
	}
	add("login", l.login)
	add("user", l.user)
	add("resource", l.resource)
	add("plan", l.plan)
	if l.cost >= 0 {
		fmt.Fprintf(&out, " cost=%d", l.cost)
	}
	for _, f := range l.fields {
		add(string(f.name), f.value)
	}
	for _, c := range l.claims {
		add("jwt."+string(c.name), c.value)
	}
	return out.String()
}

type reading struct{ raw, want string }

func check(t *testing.T, parse parser, all []reading) {
	t.Helper()
	for _, r := range all {
		if got := read(parse, r.raw); got != r.want {
			t.Errorf("%s\n got %s\nwant %s", r.raw, got, r.want)
		}
	}
}

func TestCommonAndCombinedLinesAreRead(t *testing.T) {
	check(t, new(combined).parse, []reading{
		{`127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326`,
			`2000-10-10T20:55:36Z 127.0.0.1 GET target="/apache_pb.gif" login="frank"`},
		{`203.0.113.7 - - [26/Nov/2026:10:00:01 +0000] "GET /a?b=c HTTP/1.1" 304 - "https://example.com/x" "Mozilla/5.0 (X11)" "extra" 0.004`,
			`2026-11-26T10:00:01Z 203.0.113.7 GET target="/a?b=c" Referer="https://example.com/x" User-Agent="Mozilla/5.0 (X11)"`},
		{`2001:db8::7 - - [26/Nov/2026:10:00:01 +0530] "POST /login HTTP/2.0" 200 17 "-" "-"`,
			`2026-11-26T04:30:01Z 2001:db8::7 POST target="/login"`},
		{`::ffff:10.0.0.9 - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 0 "" ""`,
			`2026-11-26T10:00:01Z 10.0.0.9 GET target="/"`},
		{`shop.example.com:443 10.1.2.3 - - [29/Feb/2024:23:59:59 +0000] "GET / HTTP/1.1" 200 -5 "-" "x"`,
			`2024-02-29T23:59:59Z 10.1.2.3 GET target="/" host="shop.example.com:443" User-Agent="x"`},
		{`10.0.0.1 203.0.113.9 - - [29/Feb/2024:23:59:59 +0000] "GET / HTTP/1.1" 200 5`, // $host $remote_addr, asked by address
			`2024-02-29T23:59:59Z 203.0.113.9 GET target="/" host="10.0.0.1"`},
		{`10.0.0.1:8080 2001:db8::9 - ann [29/Feb/2024:23:59:59 +0000] "GET / HTTP/1.1" 200 5`,
			`2024-02-29T23:59:59Z 2001:db8::9 GET target="/" host="10.0.0.1:8080" login="ann"`},
		{`- 203.0.113.9 - - [29/Feb/2024:23:59:59 +0000] "GET / HTTP/1.1" 200 5`, `2024-02-29T23:59:59Z 203.0.113.9 GET target="/"`},
		{`1.2.3.4, 5.6.7.8 - - [29/Feb/2024:23:59:59 +0000] "GET / HTTP/1.1" 200 5`, // $http_x_forwarded_for
			`2024-02-29T23:59:59Z 5.6.7.8 GET target="/" X-Forwarded-For="1.2.3.4"`},
		{`1.2.3.4,unknown, 10.0.0.2,2001:db8::5 - ann [29/Feb/2024:23:59:59 +0000] "GET / HTTP/1.1" 200 5`,
			`2024-02-29T23:59:59Z 2001:db8::5 GET target="/" login="ann" X-Forwarded-For="1.2.3.4,unknown, 10.0.0.2"`},
		{`unix: - - [26/Nov/2026:10:00:01 +0000] "GET /socket HTTP/1.1" 200 1`,
			`2026-11-26T10:00:01Z invalid IP GET target="/socket"`},
		{`10.0.0.1 - John Doe [x] [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`,
			`2026-11-26T10:00:01Z 10.0.0.1 GET target="/" login="John Doe [x]"`},
		{`10.0.0.1 - - [2026-11-26T10:00:01+01:00] "GET / HTTP/1.1" 200 1`,
			`2026-11-26T09:00:01Z 10.0.0.1 GET target="/"`},
		{`10.0.0.1 - - [1764151201.524] "GET / HTTP/1.1" 200 1`,
			`2025-11-26T10:00:01.524Z 10.0.0.1 GET target="/"`},
	})
}

func TestHostileCombinedLinesAreReadOrRefused(t *testing.T) {
	const start = `10.0.0.1 - - [26/Nov/2026:10:00:01 +0000] `
	const is = `2026-11-26T10:00:01Z 10.0.0.1 `
	check(t, new(combined).parse, []reading{
		// What came was no request: the method is empty.
		{start + `"-" 408 0 "-" "-"`, is},
		{start + `"" 400 0 "-" "-"`, is},
		{start + `"\x16\x03\x01\x02\x00\x01\x00\x01\xFC" 400 226 "-" "-"`, is},
		{start + `"GET /old" 400 5`, is},
		{start + `"PRI * HTTP/2.0" 400 5`, is + `PRI target="*"`},
		{start + `" GET / HTTP/1.1" 400 5`, is},
		// Escapes of nginx and Apache.
		{start + `"GET /\x22quoted\x22\x5C HTTP/1.1" 200 5 "\"ref\\\"" "a\tb\q"`,
			is + `GET target="/\"quoted\"\\" Referer="\"ref\\\"" User-Agent="a\tb\\q"`},
		{start + `"GET /a b c HTTP/1.1" 200 5`, is + `GET target="/a b c"`},
		{start + `"GET /x\ HTTP/1.1" 200 5`, is + `GET target="/x\\"`},
		{start + `"GET /x\xZZ HTTP/1.1" 200 5`, is + `GET target="/x\\xZZ"`},
		// An agent that pretends to be the end of the line.
		{start + `"GET / HTTP/1.1" 200 5 "-" "a\" 500 \"b"`, is + `GET target="/" User-Agent="a\" 500 \"b"`},
		{start + `"GET / HTTP/1.1" 200 5 "-" "no end`, is + `GET target="/"`},
		{start + `"GET / HTTP/1.1" 200 5 "no end`, is + `GET target="/"`},
		{start + `"GET / HTTP/1.1" 200`, is + `GET target="/"`},
		// What can't be read.
		{start + `"GET / HTTP/1.1 200 5`, "error: " + errNoRequest.Error()},
		{start + `"GET / HTTP/1.1\" 200 5`, "error: " + errNoRequest.Error()},
		{start + `GET / HTTP/1.1 200 5`, "error: " + errNoRequest.Error()},
		{start + `"GET / HTTP/1.1" OK 5`, "error: " + errNoStatus.Error()},
		{start + `"GET / HTTP/1.1"`, "error: " + errNoStatus.Error()},
		{start, "error: " + errNoRequest.Error()},
		{`10.0.0.1 - - [31/Feb/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`, "error: " + errNoTime.Error()},
		{`10.0.0.1 - - 26/Nov/2026:10:00:01 +0000 "GET / HTTP/1.1" 200 1`, "error: " + errNoTime.Error()},
		{`10.0.0.1 - - [`, "error: " + errNoTime.Error()},
		{`host.example.com - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`, "error: " + errNoClient.Error()},
		{`1.2.3.4, unknown - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`, "error: " + errForwarded.Error()},
		{`1.2.3.4, - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`, "error: " + errForwarded.Error()},
		{`, - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`, "error: " + errForwarded.Error()},
		{`1.2.3.4,`, "error: " + errNoClient.Error()},
		{`1.2.3.4, `, "error: " + errNoClient.Error()},
		{`shop.example.com 1.2.3.4, 5.6.7.8 - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`, "error: " + errNoClient.Error()},
		{`300.0.0.1 - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`, "error: " + errNoClient.Error()},
		{`nonsense`, "error: " + errNoClient.Error()},
		{``, "error: " + errNoClient.Error()},
	})
	long := strings.Repeat("x", 100<<10)
	check(t, new(combined).parse, []reading{{start + `"GET /` + long + ` HTTP/1.1" 414 5 "-" "` + long + `"`,
		is + `GET target="/` + long + `" User-Agent="` + long + `"`}})
}

func TestEnvoyLinesAreRead(t *testing.T) {
	const start, end = `[2026-11-26T10:00:01.250Z] "GET /api?x=1 HTTP/1.1" 200 - 0 15 3 2 `, ` "api.example.com:8443" "10.2.0.4:80"`
	const is = `2026-11-26T10:00:01.25Z `
	check(t, new(envoyText).parse, []reading{
		{start + `"203.0.113.9" "curl/8.9" "6f-1"` + end,
			is + `203.0.113.9 GET target="/api?x=1" host="api.example.com:8443" User-Agent="curl/8.9" X-Request-Id="6f-1"`},
		{start + `"203.0.113.9, 10.0.0.1,2001:db8::1" "-" "-"` + end,
			is + `2001:db8::1 GET target="/api?x=1" host="api.example.com:8443" X-Forwarded-For="203.0.113.9, 10.0.0.1"`},
		{start + `"-" "a "quoted" "agent"" "6f-1"` + end,
			is + `invalid IP GET target="/api?x=1" host="api.example.com:8443" User-Agent="a \"quoted\" \"agent\"" X-Request-Id="6f-1"`},
		{`[2026-11-26T10:00:01.250Z] "GET /"200" HTTP/1.1" 0 DC 0 0 3 - "10.0.0.1" "-" "-" "a" "-"`,
			is + `10.0.0.1 GET target="/\"200\"" host="a"`},
		{`[2026-11-26T10:00:01.250Z] "- - -" 400 DPE 0 11 0 - "-" "-" "-" "-" "-"`, is + `invalid IP `},
		{start + `"not an address" "-" "-"` + end, "error: " + errForwarded.Error()},
		{start + `"10.0.0.1" "-"`, "error: " + errNoEnvoyFields.Error()},
		{start, "error: " + errNoEnvoyFields.Error()},
		{`[2026-11-26T10:00:01.250Z] "GET / HTTP/1.1" `, "error: " + errNoStatus.Error()},
		{`[2026-11-26T10:00:01.250Z] `, "error: " + errNoRequest.Error()},
		{`[yesterday] "GET / HTTP/1.1" 200`, "error: " + errNoEnvoyTime.Error()},
		{`10.0.0.1 - -`, "error: " + errNoEnvoyTime.Error()},
	})
	check(t, new(envoyJSON).parse, []reading{
		{`{"start_time":"2026-11-26T10:00:01.250Z","method":"GET","path":"/api?x=1","authority":"api.example.com","x_forwarded_for":"203.0.113.9,10.0.0.1","user_agent":"curl","request_id":"6f","response_code":200}`,
			is + `10.0.0.1 GET target="/api?x=1" host="api.example.com" User-Agent="curl" X-Request-Id="6f" X-Forwarded-For="203.0.113.9"`},
		{`{":authority":"a","start_time":"2026-11-26T10:00:01.250Z","method":"GET","x-envoy-origin-path":"/p","x-forwarded-for":null,"downstream_remote_address":"[2001:db8::2]:4711"}`,
			is + `2001:db8::2 GET target="/p" host="a"`},
		{`{"start_time":"2026-11-26T10:00:01.250Z","method":"GET","path":"/p","x_forwarded_for":"203.0.113.9","downstream_direct_remote_address":"10.0.0.2:99"}`,
			is + `10.0.0.2 GET target="/p" X-Forwarded-For="203.0.113.9"`},
		{`{"start_time":"2026-11-26T10:00:01.250Z","method":null,"path":null,"response_code":0,"downstream_remote_address":"here"}`, "error: " + errEnvoyJSONClient.Error()},
		{`{"start_time":"2026-11-26T10:00:01.250Z","method":null,"path":null,"response_code":400,"downstream_remote_address":"10.0.0.1:9"}`, is + `10.0.0.1 `},
		{`{"start_time":"2026-11-26T10:00:01.250Z","method":"GET","path":"/p","client_ip":"10.0.0.1"}`, "error: " + errEnvoyJSONNames.Error()},
		{`{"start_time":"2026-11-26T10:00:01.250Z","authority":"a","method":"GET","path":"-"}`, "error: " + errEnvoyJSONNames.Error()},
		{`{"start_time":"now"}`, "error: " + errEnvoyJSONTime.Error()},
		{`[]`, "error: " + errNoJSON.Error()},
	})
}

func TestCaddyLinesAreRead(t *testing.T) {
	check(t, new(caddy).parse, []reading{
		{`{"level":"info","ts":1764151201.5241024,"logger":"http.log.access.log0","msg":"handled request","request":{"remote_ip":"10.0.0.1","remote_port":"41342","client_ip":"203.0.113.5","proto":"HTTP/2.0","method":"GET","host":"api.example.com","uri":"/a?b=%22","headers":{"User-Agent":["curl/8"],"X-User-Id":["ann"],"Authorization":["REDACTED"],"Accept":["a","b"]},"tls":{"version":772}},"user_id":"","duration":0.01,"size":5,"status":200}`,
			`2025-11-26T10:00:01.524102Z 203.0.113.5 GET target="/a?b=%22" host="api.example.com" secure User-Agent="curl/8" X-User-Id="ann" Accept="a" Accept="b"`},
		{`{"ts":"2026-11-26T10:00:01.250Z","request":{"remote_ip":"2001:db8::1","method":"GET","host":"a","uri":"/\u0022\n"},"user_id":"bob"}`,
			`2026-11-26T10:00:01.25Z 2001:db8::1 GET target="/\"\n" host="a" login="bob"`},
		{`{"level":"info","ts":1764151201.5,"logger":"admin","msg":"admin endpoint started"}`, "error: " + errSkipped.Error()},
		{`{"ts":"soon","request":{}}`, "error: " + errCaddyTime.Error()},
		{`{"ts":1,"request":{"remote_ip":"x"}}`, "error: " + errCaddyClient.Error()},
		{`{"request":1}`, "error: " + errNoCaddyRequest.Error()},
		{`{"ts":`, "error: " + errNoJSON.Error()},
	})
}

func TestOwnLogIsRead(t *testing.T) {
	const allow = `{"listener":"control","method":"POST","path":"/allow","time":"2026-11-26T10:00:02Z","client_ip":"10.0.0.2","user_id":"bob",`
	const bob = `2026-11-26T10:00:02Z 10.0.0.2 POST target="/allow"`
	check(t, new(own).parse, []reading{
		{`{"level":"info","request_id":"f0","listener":"proxy","method":"GET","path":"/v1/items/7","route":"items","user_id":"ann","resource":"read","cost":2,"decision":"allow","limit":"read","tokens_left":99.0,"retry_after":0.0,"upstream":"api","upstream_ms":1.2,"status":200,"duration_ms":1.5,"client_ip":"10.0.0.1","bytes":12,"time":"2026-11-26T10:00:01.250Z"}`,
			`2026-11-26T10:00:01.25Z 10.0.0.1 GET target="/v1/items/7" user="ann" resource="read" cost=2`},
		{`{"level":"info","request_id":"f1","listener":"control","method":"POST","path":"/allow","user_id":"bob","resource":"search","plan":"gold","cost":3,"decision":"deny","status":429,"duration_ms":0.1,"client_ip":"10.0.0.2","bytes":12,"time":"2026-11-26T10:00:02Z"}`,
			`2026-11-26T10:00:02Z 10.0.0.2 POST target="/allow" direct user="bob" resource="search" plan="gold" cost=3`},
		{allow + `"cost":3,"decision":"allow","replayed":true,"status":200}`, bob + ` direct replayed user="bob" cost=3`},
		{allow + `"cost":0,"decision":"error","status":400}`, bob + ` direct refused=400 user="bob" cost=0`},
		{allow + `"cost":3,"decision":"error","status":422}`, bob + ` direct refused=422 user="bob" cost=3`},
		{allow + `"cost":3,"decision":"error","status":503}`, bob + ` direct user="bob" cost=3`},    // Redis failed it
		{allow + `"cost":300,"decision":"deny","status":400}`, bob + ` direct user="bob" cost=300`}, // it can never pass
		{`{"listener":"control","endpoint":"/check","method":"PUT","path":"/v1/items/7","route":"items","user_id":"ann","resource":"read","plan":"gold","cost":2,"decision":"deny","status":403,"own_status":429,"client_ip":"10.0.0.1","peer":"127.0.0.1","time":"2026-11-26T10:00:01.250Z"}`,
			`2026-11-26T10:00:01.25Z 10.0.0.1 PUT target="/v1/items/7" user="ann" resource="read" plan="gold" cost=2`},
		{`{"listener":"control","endpoint":"/check","method":"POST","path":"/allow","status":404,"client_ip":"10.0.0.1","time":"2026-11-26T10:00:01.250Z"}`,
			`2026-11-26T10:00:01.25Z 10.0.0.1 POST target="/allow"`},
		{`{"listener":"control","method":"GET","path":"/check","route":"items","user_id":"ann","status":200,"client_ip":"127.0.0.1","time":"2026-11-26T10:00:01.250Z"}`, "error: " + errSkipped.Error()}, // of an older version
		{`{"listener":"control","request_id":"f","method":"GET","path":"/check","status":400,"time":"2026-11-26T10:00:01.250Z"}`, "error: " + errAside.Error()},
		{`{"listener":"https","request_id":"f","method":"GET","path":"/","status":200,"time":"2026-11-26T10:00:01.250Z"}`, "error: " + errSkipped.Error()},
		{`{"level":"info","listener":"proxy","method":"","path":"","status":400,"time":"2026-11-26T10:00:02Z"}`, `2026-11-26T10:00:02Z invalid IP `},
		{`{"level":"info","listener":"control","method":"GET","path":"/readyz","status":200,"time":"2026-11-26T10:00:02Z"}`, "error: " + errSkipped.Error()},
		{`{"level":"info","control":"127.0.0.1:8000","proxy":"[::]:8080","time":"2026-11-26T10:00:00Z","message":"serving"}`, "error: " + errSkipped.Error()},
		{`{"listener":"proxy","status":200,"cost":-1,"time":"2026-11-26T10:00:02Z"}`, "error: " + errCost.Error()},
		{`{"listener":"proxy","status":200,"time":"noon"}`, "error: " + errOwnTime.Error()},
		{`{"listener":"proxy","status":200,"client_ip":"?","time":"2026-11-26T10:00:02Z"}`, "error: " + errOwnClient.Error()},
	})
}

// jsonReader reads JSON by a map.
func jsonReader(t *testing.T, fields string) parser {
	t.Helper()
	m, err := ParseFields(fields)
	if err != nil {
		t.Fatal(err)
	}
	return (&mappedJSON{fields: &m}).parse
}

func TestJSONIsReadByTheUsualNames(t *testing.T) {
	check(t, jsonReader(t, ""), []reading{
		{`{"time":"2026-11-26T10:00:01Z","method":"GET","uri":"/a","host":"h","client_ip":"10.0.0.1","scheme":"https"}`,
			`2026-11-26T10:00:01Z 10.0.0.1 GET target="/a" host="h" secure`},
		{`{"@timestamp":"2026-11-26T10:00:01+01:00","request_method":"GET","request_uri":"/a?b","uri":"/a","http_host":"h","remote_addr":"10.0.0.1:99"}`,
			`2026-11-26T09:00:01Z 10.0.0.1 GET target="/a?b" host="h"`},
		{`{"msec":"1764151201.524","request":"GET /a HTTP/1.1","remote_addr":"unix:"}`, `2025-11-26T10:00:01.524Z invalid IP GET target="/a"`},
		{`{"ts":1764151201524,"request":""}`, `2025-11-26T10:00:01.524Z invalid IP `},
		{`{"ts":1764151201524,"request":"-","method":"-"}`, `2025-11-26T10:00:01.524Z invalid IP `},
		{`{"ts":1764151201524,"request_method":"","uri":""}`, `2025-11-26T10:00:01.524Z invalid IP `},
		{`{"time":"","ts":"-","timestamp":"2026-11-26T10:00:01Z","method":"","http_method":"GET","request_uri":"","uri":"-","path":"/a","host":"-","authority":"h","client_ip":"-","remote_addr":"","client":"10.0.0.1","scheme":"-"}`,
			`2026-11-26T10:00:01Z 10.0.0.1 GET target="/a" host="h"`},
		{`{"time":"2026-11-26T10:00:01Z","method":"GET","uri":"/a","host":"-","client_ip":"-","remote_addr":"-"}`, `2026-11-26T10:00:01Z invalid IP GET target="/a"`},
		{`{"time":"2026-11-26T10:00:01Z","method":"","uri":"/a"}`, `error: there is neither a method at method, request_method, http_method and a uri at request_uri, uri, path, url, nor a request at request`},
		{`{"time":"2026-11-26T10:00:01Z","method":"GET","uri":"/a","client_ip":"me"}`, `error: the client at client_ip, remote_addr, remote_ip, client, ip is no IP address`},
		{`{"method":"GET","uri":"/a"}`, `error: there is no time at time, ts, timestamp, @timestamp, time_iso8601, msec, time_local, start_time`},
		{`{"time":"2026-11-26T10:00:01Z"}`, `error: there is neither a method at method, request_method, http_method and a uri at request_uri, uri, path, url, nor a request at request`},
		{`"text"`, "error: " + errNoJSON.Error()},
		{`{"time":1}garbage`, "error: " + errNoJSON.Error()},
	})
}

func TestJSONIsReadByAMap(t *testing.T) {
	parse := jsonReader(t, `time=t.at,method=req.method,uri=req.uri,host=req.host,client_ip=peer,header.X-User-Id=req.headers.x_user,`+
		`header.Accept=req.accept,jwt.sub=sub,user=who,resource=res,plan=plan,cost=cost\.units`)
	check(t, parse, []reading{
		{`{"t":{"at":1.5},"req":{"method":"GET","uri":"/","host":"h","headers":{"x_user":"ann"},"accept":["a",7]},"peer":"::1","sub":"s","who":"w","res":"r","plan":"p","cost.units":4}`,
			`1970-01-01T00:00:01.5Z ::1 GET target="/" host="h" user="w" resource="r" plan="p" cost=4 X-User-Id="ann" Accept="a" Accept="7" jwt.sub="s"`},
		{`{"t":{"at":1.5},"req":{"method":"GET","uri":"/","headers":{"x_user":"-"}},"sub":"-","who":"-","res":"","plan":"-","cost.units":"-"}`,
			`1970-01-01T00:00:01.5Z invalid IP GET target="/"`},
		{`{"t":{"at":1.5},"req":{"method":"GET","uri":"/"},"cost.units":"many"}`, "error: " + errCost.Error()},
		{`{"t":1.5,"req":{"method":"GET","uri":"/"}}`, "error: there is no time at t.at"},
	})
}

func TestCostsAreWholeNumbersHoweverTheyAreWritten(t *testing.T) {
	parse := jsonReader(t, "cost=cost")
	for text, want := range map[string]string{
		"0": "cost=0", "2": "cost=2", "2.0": "cost=2", `"2.000"`: "cost=2", "2e0": "cost=2", "1E3": "cost=1000", "1e9": "cost=1000000000", "1000000000.0": "cost=1000000000",
		"2.5": "", "-1": "", "-1.0": "", "1000000001": "", "1e10": "", "1e400": "", "18446744073709551618": "", `"0x1p4"`: "", `"Inf"`: "", `"NaN"`: "", `"2 "`: "",
	} {
		got := read(parse, `{"time":1,"method":"GET","uri":"/","cost":`+text+`}`)
		if want == "" && got != "error: "+errCost.Error() || want != "" && !strings.HasSuffix(got, " "+want) {
			t.Errorf("%s: got %s, want %q", text, got, want)
		}
	}
}

func TestMapsThatMeanNothingAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"time":            `"time" is no pair like time=ts`,
		"time=":           `"time=" is no pair like time=ts`,
		"time=a,time=b":   `"time" is there twice`,
		"tim=ts":          `"tim" is none of time, request, method, uri, host, client_ip, scheme, user, resource, plan, cost, header.NAME, jwt.NAME`,
		"header.=x":       `"header." is none of time, request, method, uri, host, client_ip, scheme, user, resource, plan, cost, header.NAME, jwt.NAME`,
		"time=a,,uri=b":   `"" is no pair like time=ts`,
		"client_ip=a, b=": `" b=" is no pair like time=ts`,
	} {
		if _, err := ParseFields(text); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func TestFormatIsFoundByTheFirstLines(t *testing.T) {
	for _, c := range []struct{ given, sample, want string }{
		{auto, `10.0.0.1 - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`, "combined"},
		{auto, "garbage\r\n\n# comment\n" + `a.example:80 10.0.0.1 - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1` + "\n", "combined"},
		{auto, `[2026-11-26T10:00:01.250Z] "GET / HTTP/1.1" 200 - 0 0 0 - "-" "-" "-" "-" "-"` + "\n", "envoy text"},
		{auto, `{"start_time":"2026-11-26T10:00:01Z","method":"GET","path":"/","authority":"a","response_code":200}`, "envoy json"},
		{"envoy", `{"start_time":"2026-11-26T10:00:01Z","method":"GET","path":"/","authority":"a"}`, "envoy json"},
		{auto, `{"ts":1.5,"request":{"method":"GET","uri":"/","remote_ip":"10.0.0.1"}}`, "caddy"},
		{auto, `{"message":"serving","time":"2026-11-26T10:00:01Z"}` + "\n" +
			`{"listener":"proxy","method":"GET","path":"/","client_ip":"10.0.0.1","status":200,"time":"2026-11-26T10:00:01Z"}`, ownFormat},
		{auto, `{"listener":"control","request_id":"f0","method":"GET","path":"/check","client_ip":"127.0.0.1","status":200,"time":"2026-11-26T10:00:01Z"}`, ownFormat},
		{auto, `{"listener":"control","request_id":"f0","endpoint":"/check","method":"GET","path":"/a","client_ip":"127.0.0.1","status":200,"time":"2026-11-26T10:00:01Z"}`, ownFormat},
		{auto, `{"listener":"https","request_id":"f0","method":"GET","path":"/a","client_ip":"127.0.0.1","status":200,"time":"2026-11-26T10:00:01Z"}`, "json"},
		{auto, `{"time":1,"method":"GET","uri":"/"}`, "json"},
		{auto, `{"start_time":"2026-11-26T10:00:01Z","method":"GET","path":"/","client_ip":"10.0.0.1"}`, "json"},
		{auto, `{"start_time":"2026-11-26T10:00:01Z","request":"GET / HTTP/1.1","client_ip":"10.0.0.1"}`, "json"},
		{"json", `whatever`, "json"},
		{"combined", `{"time":1}`, "combined"},
	} {
		m, _ := ParseFields("")
		f, err := choose(c.given, []byte(c.sample), &m)
		if err != nil || f.name != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.sample, f.name, err, c.want)
		}
	}
	given, _ := ParseFields("time=at")
	for _, sample := range []string{`{"ts":1.5,"at":2,"request":{"method":"GET","uri":"/"}}`, `10.0.0.1 - - [26/Nov/2026:10:00:01 +0000] "GET / HTTP/1.1" 200 1`} {
		if f, err := choose(auto, []byte(sample), &given); err != nil || f.name != "json" {
			t.Errorf("%s with a map: got %q, %v, want json", sample, f.name, err)
		}
	}
	m, _ := ParseFields("")
	for sample, want := range map[string]string{
		`{"a":1}`: "the first line is JSON, but there is no time at time, ts, timestamp, @timestamp, time_iso8601, msec, time_local, start_time (say what is where, with -fields, or which format it is, with -format)",
		"hello\n": "the first line is no JSON, not Envoy's, and if it were combined: the line begins with no IP address (say which format it is, with -format)",
		"\n":      "the line is empty (say which format it is, with -format)",
	} {
		if _, err := choose(auto, []byte(sample), &m); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", sample, err, want)
		}
	}
}

func TestMomentsAreRead(t *testing.T) {
	var m moments
	for text, want := range map[string]string{
		"10/Oct/2000:13:55:36 -0700":          "2000-10-10T20:55:36Z",
		"31/Dec/1999:23:59:60 +0000":          "2000-01-01T00:00:00Z",
		"2026-11-26T10:00:01Z":                "2026-11-26T10:00:01Z",
		"2026-11-26t10:00:01.1234567z":        "2026-11-26T10:00:01.123456Z",
		"2026-11-26 10:00:01,5 ":              "",
		"2026-11-26 10:00:01,5":               "2026-11-26T10:00:01.5Z",
		"2026/11/26 10:00:01.25-0330":         "2026-11-26T13:30:01.25Z",
		"2026-11-26T10:00:01.5+05:30":         "2026-11-26T04:30:01.5Z",
		"1764151201":                          "2025-11-26T10:00:01Z",
		"1764151201.524999999":                "2025-11-26T10:00:01.524999Z",
		"1764151201524":                       "2025-11-26T10:00:01.524Z",
		"1764151201524.75":                    "2025-11-26T10:00:01.52475Z",
		"1764151201524999":                    "2025-11-26T10:00:01.524999Z",
		"1764151201524999123":                 "2025-11-26T10:00:01.524999Z",
		"1764151201524999123.5":               "2025-11-26T10:00:01.524999Z",
		"9999999999999999999":                 "2286-11-20T17:46:39.999999Z",
		"99999999999999999999":                "5138-11-16T09:46:39.999999Z",
		"0000000001764151201":                 "",
		"999999999999999999999":               "",
		"1.767225603e12":                      "2026-01-01T00:00:03Z",
		"1.767225603524e12":                   "2026-01-01T00:00:03.524Z",
		"1.767225603524999E15":                "2026-01-01T00:00:03.524999Z",
		"1.767225603524999123e18":             "2026-01-01T00:00:03.524999Z",
		"1e20":                                "",
		"31/Dec/9999:23:59:59 +0000":          "9999-12-31T23:59:59Z",
		"9999-12-31T23:59:59.9999999Z":        "9999-12-31T23:59:59.999999Z",
		"31/Dec/9999:23:59:59 -0100":          "",
		"9999-12-31T23:59:60Z":                "",
		"1970-01-01T00:00:00+05:00":           "",
		"176415120152499912":                  "1975-08-04T20:12:00.152499Z",
		"1.7641512015e9":                      "2025-11-26T10:00:01.5Z",
		"0":                                   "1970-01-01T00:00:00Z",
		"":                                    "",
		"-1":                                  "",
		"1e400":                               "",
		"NaN":                                 "",
		"1.5.5":                               "",
		"2026-02-29T10:00:01Z":                "",
		"2024-02-29T10:00:01Z":                "2024-02-29T10:00:01Z",
		"1900-01-01T00:00:00Z":                "",
		"2100-03-01T00:00:00Z":                "2100-03-01T00:00:00Z",
		"2026-11-26T24:00:00Z":                "",
		"2026-11-26T10:00:01.Z":               "",
		"2026-11-26T10:00:01+1":               "",
		"2026-11-26T10:00:01+25:00":           "",
		"26/nov/2026:10:00:01 +0000":          "",
		"26/Nov/2026:10:00:01 00000":          "",
		"2026-11-26T10:00:01.123456789+00:00": "2026-11-26T10:00:01.123456Z",
	} {
		at, ok := m.read([]byte(text))
		got := ""
		if ok {
			got = time.UnixMicro(at).UTC().Format(time.RFC3339Nano)
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestDaysAreThoseOfTheCalendar(t *testing.T) {
	for at := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC); at.Year() < 2110; at = at.AddDate(0, 0, 1) {
		year, month, day := at.Date()
		if got, ok := daysSince1970(int64(year), int64(month), int64(day)); !ok || got != at.Unix()/86400 {
			t.Fatalf("%v: got %d %v, want %d", at, got, ok, at.Unix()/86400)
		}
	}
}

func FuzzAddressesAreThoseOfNetip(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "01.2.3.4", "256.1.1.1", "::", "::1", "1::", "2001:db8::7", "::ffff:1.2.3.4", "1:2:3:4:5:6:7:8",
		"1:2:3:4:5:6:7::", "1:2:3:4:5:6:1.2.3.4", "::1.2.3.4:5", "1::2::3", ":1", "1:", "fe80::1", "12345::", "1:2:3:4:5:6:7:8:9", "::1:2:3:4:5:6:7:8"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseAddr([]byte(s))
		want, err := netip.ParseAddr(s)
		if strings.Contains(s, "%") {
			return
		}
		if ok != (err == nil) || got != want.Unmap() {
			t.Errorf("%q: got %v %v, want %v %v", s, got, ok, want, err)
		}
	})
}

func FuzzMomentsAreThoseOfTime(f *testing.F) {
	f.Add("2026-11-26T10:00:01.123456Z")
	f.Add("26/Nov/2026:10:00:01 +0000")
	f.Add("1764151201.5")
	f.Fuzz(func(t *testing.T, s string) {
		at, ok := new(moments).read([]byte(s))
		for _, layout := range []string{time.RFC3339Nano, "02/Jan/2006:15:04:05 -0700"} {
			want, err := time.Parse(layout, s)
			if err != nil || want.Year() < 1971 || want.Year() > 9998 || !ok {
				continue
			}
			if at != want.UnixMicro() {
				t.Errorf("%q: got %d, want %d", s, at, want.UnixMicro())
			}
		}
	})
}

// FuzzParsers looks for lines that a parser can't stand, or of which it makes what is
// not in bounds.
func FuzzParsers(f *testing.F) {
	for _, s := range []string{
		`127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /\x22 HTTP/1.0" 200 2326 "a" "b"`,
		`[2026-11-26T10:00:01.250Z] "GET /api?x=1 HTTP/1.1" 200 - 0 15 3 2 "203.0.113.9" "curl/8.9" "6f-1" "a" "b"`,
		`{"ts":1764151201.5,"request":{"remote_ip":"10.0.0.1","method":"GET","uri":"/","headers":{"A":["b"]},"tls":{}}}`,
		`{"start_time":"2026-11-26T10:00:01.250Z","method":"GET","path":"/","x_forwarded_for":"203.0.113.9,10.0.0.1"}`,
		`{"listener":"proxy","method":"GET","path":"/","cost":1,"status":200,"time":"2026-11-26T10:00:01.250Z"}`,
		`{"time":"2026-11-26T10:00:01.250Z","request":"GET / HTTP/1.1","remote_addr":"[::1]:80"}`,
	} {
		f.Add([]byte(s))
	}
	m, err := ParseFields("header.A=a.b,jwt.sub=sub,cost=cost")
	if err != nil {
		f.Fatal(err)
	}
	parsers := make([]parser, len(formats))
	for i := range formats {
		parsers[i] = formats[i].new(&m)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for i, parse := range parsers {
			var l line
			l.reset()
			mine := append([]byte(nil), raw...)
			if parse(mine, &l) != nil {
				continue
			}
			if l.at < 0 || l.at > lastMoment || l.cost < -1 || l.cost > 1_000_000_000 {
				t.Errorf("%s makes %s of %q", formats[i].name, l.describe(), raw)
			}
		}
	})
}
