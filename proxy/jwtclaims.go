package proxy

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// tokenClaims are what a token says. Unlike the library's own maps they keep
// fractions of seconds, and no date is too far away to be compared.
type tokenClaims map[string]any

// GetExpirationTime is exp; nil if there is none.
func (c tokenClaims) GetExpirationTime() (*jwt.NumericDate, error) { return c.date("exp") }

// GetNotBefore is nbf; nil if there is none.
func (c tokenClaims) GetNotBefore() (*jwt.NumericDate, error) { return c.date("nbf") }

// GetIssuedAt is iat; nil if there is none.
func (c tokenClaims) GetIssuedAt() (*jwt.NumericDate, error) { return c.date("iat") }

// GetIssuer is iss; "" if there is none.
func (c tokenClaims) GetIssuer() (string, error) { return c.text("iss") }

// GetSubject is sub, which nobody checks.
func (c tokenClaims) GetSubject() (string, error) { return c.text("sub") }

// GetAudience is aud, which may be one text or several (RFC 7519 section 4.1.3).
func (c tokenClaims) GetAudience() (jwt.ClaimStrings, error) {
	list, isList := c["aud"].([]any)
	if !isList {
		one, err := c.text("aud")
		return jwt.ClaimStrings{one}, err
	}
	var all jwt.ClaimStrings
	for _, each := range list {
		one, isText := each.(string)
		if !isText {
			return nil, errClaimType
		}
		all = append(all, one)
	}
	return all, nil
}

// text is a claim that can only be text; "" if it is not there.
func (c tokenClaims) text(name string) (string, error) {
	value, has := c[name]
	text, isText := value.(string)
	if has && !isText {
		return "", errClaimType
	}
	return text, nil
}

// lastDate is the end of the year 9999, in Unix time.
const lastDate = 253402300799

// date is a claim that is seconds since 1970; nil if it is not there.
func (c tokenClaims) date(name string) (*jwt.NumericDate, error) {
	value, has := c[name]
	if !has {
		return nil, nil
	}
	number, isNumber := value.(json.Number)
	if !isNumber {
		return nil, errClaimType
	}
	seconds, err := number.Float64()
	if err != nil || seconds < 0 || seconds > lastDate {
		return nil, errClaimType
	}
	whole, part := math.Modf(seconds)
	return &jwt.NumericDate{Time: time.Unix(int64(whole), int64(part*1e9))}, nil
}

// claim is one that routes read, as {jwt.NAME}.
type claim struct {
	name  string
	steps []string   // NAME as a path into objects
	fault *authFault // where its value can't be used
}

func newClaims(names []string) []claim {
	all := make([]claim, len(names))
	for i, name := range names {
		all[i] = claim{
			name: name, steps: strings.Split(name, "."),
			fault: tokenFault(tokenBadClaims, "the token's claim "+name+" is neither text nor an integer nor a boolean, nor a list of one"),
		}
	}
	return all
}

// find is the claim of exactly that name, else what the path leads to. Nil: there
// is neither, or it is null.
func (cl *claim) find(claims tokenClaims) any {
	if value, has := claims[cl.name]; has {
		return value
	}
	var at any = map[string]any(claims)
	for _, step := range cl.steps {
		object, isObject := at.(map[string]any)
		if !isObject {
			return nil
		}
		at = object[step]
	}
	return at
}

// claimValue is a claim as templates read it: text, which is "" where the claim is
// missing, or a fault.
type claimValue struct {
	text  string
	fault *authFault
}

// read is what routes may ask for of the claims, by index.
func (v *jwtVerifier) read(claims tokenClaims) []claimValue {
	values := make([]claimValue, len(v.claims))
	for i := range v.claims {
		cl := &v.claims[i]
		value := cl.find(claims)
		if list, isList := value.([]any); isList && len(list) == 1 && list[0] != nil {
			value = list[0]
		}
		text, ok := scalarText(value)
		values[i].text = text
		if !ok {
			values[i].fault = cl.fault
		}
	}
	return values
}

// scalarText is text, an integer as it is written, or a boolean; "" for nil. All
// else is not ok: 1e3 or 1.0 would be another user than 1000 or 1.
func scalarText(value any) (text string, ok bool) {
	switch value := value.(type) {
	case nil:
		return "", true
	case string:
		return value, true
	case bool:
		return strconv.FormatBool(value), true
	case json.Number:
		return value.String(), !strings.ContainsAny(value.String(), ".eE")
	}
	return "", false
}

// appendClaim appends the claim of that index; nothing where there is no token or
// the token lacks it.
func (r *request) appendClaim(dst []byte, index int) ([]byte, error) {
	if r.token == nil {
		return dst, nil
	}
	value := &r.token.values[index]
	if value.fault != nil {
		return dst, value.fault
	}
	return append(dst, value.text...), nil
}
