package limiter

import (
	"errors"
	"math/bits"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// Percent is a share of users: from "0%" to "100%", with at most four decimals. The
// zero Percent was not given, and includes everyone.
type Percent struct {
	millionths int32 // of all users
	given      bool
}

const (
	allMillionths   = 1_000_000
	percentDecimals = 4
)

var errPercent = errors.New("write a share of the users from 0% to 100%, with at most 4 decimals, like 5% or 0.5%")

// ParsePercent reads "5%" or "0.5%".
func ParsePercent(s string) (Percent, error) {
	number, found := strings.CutSuffix(s, "%")
	whole, decimals, _ := strings.Cut(number, ".")
	if !found || !isDecimal(number) || len(whole) > 3 || len(decimals) > percentDecimals {
		return Percent{}, errPercent
	}
	n, _ := strconv.Atoi(whole + decimals + strings.Repeat("0", percentDecimals-len(decimals)))
	if n > allMillionths {
		return Percent{}, errPercent
	}
	return Percent{int32(n), true}, nil
}

// UnmarshalText is ParsePercent for decoders.
func (p *Percent) UnmarshalText(text []byte) error {
	parsed, err := ParsePercent(string(text))
	if err == nil {
		*p = parsed
	}
	return err
}

// MarshalText writes what ParsePercent reads; nothing for one that was not given.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String is like "0.5%"; "" for one that was not given.
func (p Percent) String() string {
	if !p.given {
		return ""
	}
	return strconv.FormatFloat(float64(p.millionths)/(allMillionths/100), 'f', -1, 64) + "%"
}

// IsGiven says whether p was given at all.
func (p Percent) IsGiven() bool { return p.given }

// IsNone says whether p is 0%, which includes nobody.
func (p Percent) IsNone() bool { return p.given && p.millionths == 0 }

// Includes says whether a user is in the share. For one salt the answer is the same
// on every gateway and in every version, and who is in a share is in every larger
// one. With another salt other users are in. It allocates nothing.
//
// The hash is no secret: a client that chooses its own user_id can choose to be
// left out.
func (p Percent) Includes(salt string, user []byte) bool {
	return !p.given || standing(salt, user) < p.millionths
}

// PlaceOf is where a user stands for a salt: in every share above it, and in none up
// to it.
func PlaceOf(salt string, user []byte) Percent { return Percent{standing(salt, user), true} }

// standing is where a user stands, evenly from 0 to 999999.
func standing(salt string, user []byte) int32 {
	var h xxhash.Digest
	h.Reset()
	_, _ = h.WriteString(salt)
	_, _ = h.Write(separator)
	_, _ = h.Write(user)
	place, _ := bits.Mul64(h.Sum64(), allMillionths)
	return int32(place)
}

// separator keeps salt and user apart: salts don't hold it.
var separator = []byte{0}
