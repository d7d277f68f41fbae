package main

import _ "embed"

// schemaText is the JSON Schema of configuration files. A test writes it from the structs.
//
//go:embed deploy/schema/config.schema.json
var schemaText []byte

// schema prints it: where the program is there need not be its sources.
func (p *program) schema() int {
	_, _ = p.stdout.Write(schemaText)
	return exitFine
}
