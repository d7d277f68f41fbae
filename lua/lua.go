// Package lua holds the scripts that run inside Redis. What a script takes and
// returns, and in which units, its header says.
package lua

import _ "embed"

// Decide makes one decision over all limits of a request, in one atomic step.
//
//go:embed decide.lua
var Decide string

// Change makes one change of the settings that all gateways share, in one
// atomic step.
//
//go:embed change.lua
var Change string
