//go:build ignore

// Command schemas turns Kubernetes' swagger.json into one JSON schema for each
// kind, as kubeconform reads them: strict, so that a misspelt field is found.
//
//	go run deploy/test/schemas.go SWAGGER DIR
package main

import (
	"encoding/json"
	"log"
	"os"
	"path/filepath"
	"strings"
)

type object = map[string]any

func main() {
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var swagger struct{ Definitions map[string]object }
	if err := json.Unmarshal(data, &swagger); err != nil {
		log.Fatal(err)
	}
	for name, d := range swagger.Definitions {
		tighten(name, d)
	}
	if err := os.MkdirAll(os.Args[2], 0o755); err != nil {
		log.Fatal(err)
	}
	for name, d := range swagger.Definitions {
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		for _, each := range kinds {
			write(name, each.(object), swagger.Definitions)
		}
	}
}

// tighten refuses fields that a definition does not have, and lets numbers and
// texts stand for each other where Kubernetes does.
func tighten(name string, d object) {
	switch {
	case strings.HasSuffix(name, ".IntOrString"), strings.HasSuffix(name, ".Quantity"):
		delete(d, "format")
		d["type"] = []string{"string", "number"}
	case d["properties"] != nil:
		d["additionalProperties"] = false
	}
}

// write writes the schema of a kind: <kind>-<group>-<version>.json.
func write(name string, gvk object, all map[string]object) {
	group, _, _ := strings.Cut(gvk["group"].(string), ".")
	file := strings.ToLower(gvk["kind"].(string)) + "-" + gvk["version"].(string) + ".json"
	if group != "" {
		file = strings.ToLower(gvk["kind"].(string)) + "-" + group + "-" + gvk["version"].(string) + ".json"
	}
	used := map[string]object{}
	collect(all[name], all, used)
	used[name] = all[name]
	text, err := json.Marshal(object{"$ref": "#/definitions/" + name, "definitions": used})
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(os.Args[2], file), text, 0o644); err != nil {
		log.Fatal(err)
	}
}

// collect finds the definitions that v refers to, directly or not.
func collect(v any, all, used map[string]object) {
	switch v := v.(type) {
	case object:
		if ref, ok := v["$ref"].(string); ok {
			name := strings.TrimPrefix(ref, "#/definitions/")
			if used[name] == nil {
				used[name] = all[name]
				collect(all[name], all, used)
			}
		}
		for _, each := range v {
			collect(each, all, used)
		}
	case []any:
		for _, each := range v {
			collect(each, all, used)
		}
	}
}
