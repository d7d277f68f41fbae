package simulate

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// Share is a part of a whole, from 0 to 1, exactly. The zero value is not set.
type Share struct {
	exact *big.Rat
	text  string
}

// ParseShare reads "0.1%" or "0.001".
func ParseShare(text string) (Share, error) {
	number, isPercent := strings.CutSuffix(text, "%")
	number = strings.TrimSpace(number)
	exact, ok := new(big.Rat).SetString(number)
	if !ok || strings.ContainsAny(number, "/eExXpP_+-") || len(number) > 20 {
		return Share{}, fmt.Errorf("%q is no share; write it like 0.1%% or 0.001", text)
	}
	if isPercent {
		exact.Quo(exact, big.NewRat(100, 1))
	}
	if exact.Cmp(big.NewRat(1, 1)) >= 0 {
		return Share{}, errors.New("a share of all or more is no target; write it like 0.1% or 0.001")
	}
	return Share{exact, text}, nil
}

func (s Share) isSet() bool { return s.exact != nil }

// String is the share as it was written.
func (s Share) String() string { return s.text }

// of is the part of n, rounded down.
func (s Share) of(n uint64) uint64 {
	part := new(big.Int).SetUint64(n)
	part.Mul(part, s.exact.Num())
	return part.Quo(part, s.exact.Denom()).Uint64()
}

// float is the share, rounded.
func (s Share) float() float64 {
	f, _ := s.exact.Float64()
	return f
}
