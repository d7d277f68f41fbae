package limiter

import "time"

// RedisConfig says where Redis is and how long a decision may take.
type RedisConfig struct {
	URL       string        `yaml:"url"`
	Timeout   time.Duration `yaml:"timeout"`
	KeyPrefix string        `yaml:"key_prefix"`
}

// Validate reports every problem of c.
func (c *RedisConfig) Validate(report func(path, problem string)) {}
