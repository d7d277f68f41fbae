package main

import (
	"encoding"
	"fmt"
	"net/url"
	"reflect"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/r8limiter/r8limiter/proxy"
)

// hidden stands where a secret was.
const hidden = "(hidden)"

// secrets are the paths of texts that nobody reads back, below their
// top-level key; any name of a map or index of a list stands for all.
var secrets = map[string]bool{
	"admin.token":                     true,
	"admin.allow_token":               true,
	"limiter.redis.password":          true,
	"limiter.redis.sentinel_password": true,
	"proxy.jwt.secret":                true,
	// What a header or a parameter must be may be a password.
	"proxy.routes.match.headers.*.exact":  true,
	"proxy.routes.match.headers.*.prefix": true,
	"proxy.routes.match.headers.*.regexp": true,
	"proxy.routes.match.query.*.exact":    true,
	"proxy.routes.match.query.*.prefix":   true,
	"proxy.routes.match.query.*.regexp":   true,
}

// redacted is c as JSON can show it, by the file's keys, without secrets, and with the
// defaults of what the file left out.
func redacted(c *Config) any { return redact(reflect.ValueOf(*c), "") }

func redact(v reflect.Value, path string) any {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		return redact(v.Elem(), path)
	}
	if t, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := t.MarshalText()
		if err != nil {
			return fmt.Sprint(err)
		}
		return string(text)
	}
	switch v.Kind() {
	case reflect.Struct:
		return redactStruct(v, path)
	case reflect.Map:
		return redactMap(v, path)
	case reflect.Slice:
		all := make([]any, v.Len())
		for i := range all {
			all[i] = redact(v.Index(i), path)
		}
		return all
	case reflect.String:
		return redactText(v.String(), path)
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return d.String()
	}
	return v.Interface()
}

func redactStruct(v reflect.Value, path string) any {
	v = completed(v)
	fields := map[string]any{}
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == "" {
			continue
		}
		below := name
		if path != "" {
			below = path + "." + name
		}
		fields[name] = redact(v.Field(i), below)
	}
	return fields
}

// completed is a copy of a struct with the defaults of keys that were left out, as the
// tags of its fields have them, and those that depend on another key.
func completed(v reflect.Value) reflect.Value {
	fresh := reflect.New(v.Type()).Elem()
	fresh.Set(v)
	switch c := fresh.Addr().Interface().(type) {
	case *proxy.RouteConfig:
		if c.Resource.String() == "" {
			c.Resource, _ = proxy.ParseTemplate(c.Name) // Validate has: of a name that is none nothing is shown
		}
	case *proxy.HealthCheckConfig:
		if c.Interval > 0 && c.Timeout == 0 {
			c.Timeout = min(time.Second, c.Interval)
		}
	}
	for i := range fresh.NumField() {
		text, ok := v.Type().Field(i).Tag.Lookup("default")
		if field := fresh.Field(i); ok && field.IsZero() {
			var d decoder // a default has no variables
			d.env, d.at, d.written = func(string) (string, bool) { return "", false }, positions{}, map[string]string{}
			d.value(&yaml.Node{Kind: yaml.ScalarNode, Value: text}, "", field)
		}
	}
	return fresh
}

// redactMap keeps the names: what lies below is found under ".*".
func redactMap(v reflect.Value, path string) any {
	all := map[string]any{}
	for each := v.MapRange(); each.Next(); {
		all[each.Key().String()] = redact(each.Value(), path+".*")
	}
	return all
}

func redactText(text, path string) string {
	switch {
	case secrets[path] && text != "":
		return hidden
	case path == "limiter.redis.url":
		return redactURL(text)
	}
	return text
}

// redactURL hides the password of a URL, and all of what is no URL.
func redactURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return hidden
	}
	if _, has := u.User.Password(); !has {
		return text
	}
	u.User = url.UserPassword(u.User.Username(), "hidden")
	return u.String()
}
