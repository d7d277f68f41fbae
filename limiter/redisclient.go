package limiter

import (
	"time"

	"github.com/redis/go-redis/v9"
)

func (c *RedisConfig) client(limit time.Duration, connections int) (redis.UniversalClient, error) {
	o, err := c.options()
	if err != nil {
		return nil, err
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = limit, limit, limit, limit
	o.PoolSize = connections
	return redis.NewClient(o), nil
}
