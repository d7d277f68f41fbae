package limiter

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// infoSections are those of INFO that hold infoFields.
var infoSections = []string{"server", "memory", "persistence", "stats", "replication"}

// infoFields are the fields of INFO that are read; the others, hundreds of
// them, are not kept. See https://redis.io/docs/latest/commands/info/.
var infoFields = []string{
	"redis_version", "server_name", "valkey_version", "run_id", "uptime_in_seconds",
	"maxmemory", "maxmemory_policy",
	"aof_enabled",
	"evicted_keys",
	"role", "connected_slaves",
}

// validInfoValue are the values that are kept: infoFields are numbers, names and
// a run_id of 40 letters. Messages quote them, so none may end a line.
var validInfoValue = regexp.MustCompile(`^[!-~]{1,64}$`)

// redisInfo is what a server's INFO says, by field. A field that it lacks, or
// that makes no sense, is as one that nobody asked for: servers that call
// themselves compatible leave out many.
type redisInfo map[string]string

// parseInfo reads the answer of INFO. There is no text that it refuses.
func parseInfo(text string) redisInfo {
	info := redisInfo{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if slices.Contains(infoFields, name) && validInfoValue.MatchString(value) {
			info[name] = value
		}
	}
	return info
}

// number is a field that counts something, if the server has it.
func (i redisInfo) number(field string) (n int64, ok bool) {
	u, err := strconv.ParseUint(i[field], 10, 63)
	return int64(u), err == nil
}

// is says whether a field is there and n.
func (i redisInfo) is(field string, n int64) bool {
	got, ok := i.number(field)
	return ok && got == n
}

// askInfo sends one INFO. A Redis before 7.0 takes one section at most, and calls
// more a syntax error: it is asked again, for all that it tells by default.
func askInfo(ctx context.Context, client *redis.Client) (redisInfo, error) {
	text, err := client.Info(ctx, infoSections...).Result()
	if err != nil && redis.HasErrorPrefix(err, "syntax error") {
		text, err = client.Info(ctx).Result()
	}
	if err != nil {
		return nil, err
	}
	return parseInfo(text), nil
}
