package simulate

import (
	"math"
	"strconv"
)

// moments reads times. Lines of one second share their text, so the last one is
// remembered. The zero value is ready.
type moments struct {
	text [40]byte
	n    int
	at   int64
}

// read reads a time as logs write it, in microseconds since 1970:
// 02/Jan/2006:15:04:05 -0700, RFC 3339 with its relatives (a space for T, slashes
// for dashes, no colon in the offset, none at all for UTC), or a number, see
// unixMicros. Nothing is older than that, or younger than the year 9999.
func (m *moments) read(text []byte) (int64, bool) {
	if m.n > 0 && string(text) == string(m.text[:m.n]) {
		return m.at, true
	}
	at, ok := parseMoment(text)
	ok = ok && at >= 0 && at <= lastMoment
	if ok && len(text) <= len(m.text) {
		m.at, m.n = at, copy(m.text[:], text)
	}
	return at, ok
}

func parseMoment(text []byte) (int64, bool) {
	switch {
	case len(text) == 26 && text[2] == '/':
		return parseCommon(text)
	case len(text) >= 19 && (text[4] == '-' || text[4] == '/') && text[7] == text[4]:
		return parseRFC3339(text)
	}
	return unixMicros(text)
}

const (
	second    = 1_000_000 // in microseconds
	firstYear = 1970
	lastYear  = 9999
	// lastMoment is the end of lastYear in UTC: RFC 3339, and so a report, knows no later.
	lastMoment = 253_402_300_800*second - 1
)

// parseCommon reads 02/Jan/2006:15:04:05 -0700, whose length the caller has checked.
func parseCommon(t []byte) (int64, bool) {
	day, ok1 := digits(t[0:2])
	month := monthOf(t[3:6])
	year, ok2 := digits(t[7:11])
	clock, ok3 := parseClock(t[12:20])
	offset, ok4 := parseOffset(t[21:])
	if !ok1 || !ok2 || !ok3 || !ok4 || t[6] != '/' || t[11] != ':' || t[20] != ' ' {
		return 0, false
	}
	days, ok := daysSince1970(year, month, day)
	return (days*86400 + clock - offset) * second, ok
}

// parseRFC3339 reads 2006-01-02T15:04:05.999999Z07:00 and its relatives.
func parseRFC3339(t []byte) (int64, bool) {
	year, ok1 := digits(t[0:4])
	month, ok2 := digits(t[5:7])
	day, ok3 := digits(t[8:10])
	clock, ok4 := parseClock(t[11:19])
	if !ok1 || !ok2 || !ok3 || !ok4 || t[10] != 'T' && t[10] != 't' && t[10] != ' ' {
		return 0, false
	}
	rest := t[19:]
	var fraction int64
	if len(rest) > 0 && (rest[0] == '.' || rest[0] == ',') {
		n := 1
		for n < len(rest) && isDigit(rest[n]) {
			n++
		}
		if n == 1 {
			return 0, false
		}
		fraction, rest = micros(rest[1:n]), rest[n:]
	}
	offset, ok5 := parseZone(rest)
	days, ok6 := daysSince1970(year, month, day)
	return (days*86400+clock-offset)*second + fraction, ok5 && ok6
}

// parseZone reads Z, +07:00, +0700 or nothing, which is UTC.
func parseZone(t []byte) (seconds int64, ok bool) {
	switch {
	case len(t) == 0, len(t) == 1 && (t[0] == 'Z' || t[0] == 'z'):
		return 0, true
	case len(t) == 6 && t[3] == ':':
		joined := [5]byte{t[0], t[1], t[2], t[4], t[5]}
		return parseOffset(joined[:])
	}
	return parseOffset(t)
}

// parseOffset reads +0700.
func parseOffset(t []byte) (seconds int64, ok bool) {
	if len(t) != 5 || t[0] != '+' && t[0] != '-' {
		return 0, false
	}
	hours, ok1 := digits(t[1:3])
	minutes, ok2 := digits(t[3:5])
	seconds = hours*3600 + minutes*60
	if t[0] == '-' {
		seconds = -seconds
	}
	return seconds, ok1 && ok2 && hours < 24 && minutes < 60
}

// parseClock reads 15:04:05 as seconds of the day. A leap second is the one after it.
func parseClock(t []byte) (int64, bool) {
	h, ok1 := digits(t[0:2])
	m, ok2 := digits(t[3:5])
	s, ok3 := digits(t[6:8])
	ok := ok1 && ok2 && ok3 && t[2] == ':' && t[5] == ':' && h < 24 && m < 60 && s <= 60
	return h*3600 + m*60 + s, ok
}

// unixMicros reads a decimal number since 1970: of seconds, or of milli-, micro- or
// nanoseconds where as seconds it would lie beyond the year 5138.
func unixMicros(t []byte) (int64, bool) {
	whole := 0
	for whole < len(t) && isDigit(t[whole]) {
		whole++
	}
	if whole == 0 || whole > 20 {
		return 0, false
	}
	fraction := t[min(whole+1, len(t)):]
	if whole < len(t) && t[whole] != '.' || !areDigits(fraction) {
		return unixFloat(t)
	}
	if whole > 18 { // more than digits reads
		n, _ := digits(t[:whole-3])
		return n, t[0] != '0'
	}
	n, _ := digits(t[:whole])
	switch {
	case n < 1e11:
		return n*second + micros(fraction), true
	case n < 1e14:
		return n*1000 + micros(fraction)/1000, true
	case n < 1e17:
		return n, true
	}
	return n / 1000, true
}

// unixFloat reads such a number with an exponent, as some encoders write it.
func unixFloat(t []byte) (int64, bool) {
	f, err := strconv.ParseFloat(string(t), 64)
	switch {
	case err != nil || !(f >= 0 && f < 1e20):
		return 0, false
	case f < 1e11:
		f *= second
	case f < 1e14:
		f *= 1000
	case f >= 1e17:
		f /= 1000
	}
	return int64(math.Round(f)), true
}

// micros reads the decimals of a second, cut off behind the sixth.
func micros(fraction []byte) int64 {
	var n int64
	for i := range 6 {
		n *= 10
		if i < len(fraction) {
			n += int64(fraction[i] - '0')
		}
	}
	return n
}

// digits reads at most 18 digits and nothing else.
func digits(t []byte) (int64, bool) {
	var n int64
	for _, c := range t {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, len(t) > 0
}

// areDigits says whether there is nothing but digits, or nothing at all.
func areDigits(t []byte) bool {
	for _, c := range t {
		if !isDigit(c) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// monthOf is the number of a month by its English abbreviation; 0 for none.
func monthOf(t []byte) int64 {
	switch string(t) {
	case "Jan":
		return 1
	case "Feb":
		return 2
	case "Mar":
		return 3
	case "Apr":
		return 4
	case "May":
		return 5
	case "Jun":
		return 6
	case "Jul":
		return 7
	case "Aug":
		return 8
	case "Sep":
		return 9
	case "Oct":
		return 10
	case "Nov":
		return 11
	case "Dec":
		return 12
	}
	return 0
}

// daysBefore are the days of a common year before each month.
var daysBefore = [...]int64{0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365}

// daysSince1970 counts the days of the Gregorian calendar. A day that the month
// lacks is none.
func daysSince1970(year, month, day int64) (int64, bool) {
	if year < firstYear || year > lastYear || month < 1 || month > 12 || day < 1 {
		return 0, false
	}
	leap := year%4 == 0 && (year%100 != 0 || year%400 == 0)
	length, y := daysBefore[month]-daysBefore[month-1], year-1
	days := (year-firstYear)*365 + (y/4 - y/100 + y/400) - (1969/4 - 1969/100 + 1969/400) + daysBefore[month-1] + day - 1
	if leap && month == 2 {
		length++
	}
	if leap && month > 2 {
		days++
	}
	return days, day <= length
}
