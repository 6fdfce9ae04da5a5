// Package operate implements the actions that an operator takes. The command line and the
// HTTP API are thin layers over it. Actions that are a single method call on a store
// are not repeated here.
package operate

import (
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// Operator performs an operator's actions. It works inside a running service or
// alongside one.
type Operator struct {
	Pool         *pgxpool.Pool
	Router       *consumer.Router
	Dependencies *breaker.Set
	Janitor      *upkeep.Janitor
	Failed       *failed.Store
	Projector    *eventstore.Projector
	Auditor      *invariant.Auditor
	// Retention is the retention of the inbox.
	Retention time.Duration
	Brokers   *broker.Set
	// Streams name the streams that a key may have, such as that of an order.
	Streams []func(key string) string
	// Affected says what pauses mean for the business.
	Affected []Affected
	// Tap records the messages that pass through this process.
	Tap Tap
	// Relay and Tasks are the background work of the service. Warnings lists settings
	// that have no effect, or an unexpected one.
	Relay    *outbox.Relay
	Tasks    []*health.Loop
	Warnings check.Warnings
	Logger   *slog.Logger
	// StartedAt is the start time of the service. It is zero in a process that is not
	// the service.
	StartedAt time.Time

	progress progress
	monitor  monitor
	trends   trends
}
