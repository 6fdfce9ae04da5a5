package user

import (
	"context"
	"time"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Config configures users.
type Config struct {
	// MissesRetention is how long updates for unknown users are kept, at least 1h;
	// 0 keeps them indefinitely. Defaults to 0.
	MissesRetention time.Duration `koanf:"misses_retention"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{} }

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	return check.Value(c.MissesRetention == 0 || c.MissesRetention >= time.Hour, "user.misses_retention", c.MissesRetention, "at least 1h, or 0 for no limit")
}

// DeleteExpiredMisses deletes expired updates for unknown users and returns their
// number.
func (s *Service) DeleteExpiredMisses(ctx context.Context) (int64, error) {
	return postgres.DeleteExpired(ctx, s.pool, "user_misses", "missed_at", s.cfg.MissesRetention)
}
