// Package operate is what an operator can do, once: the command line and the
// HTTP API are thin over it. What is exactly a method of a store stays there.
package operate

import (
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/engine/upkeep"
)

// Operator carries out what an operator asks for. It works beside a running
// service and inside one.
type Operator struct {
	Pool         *pgxpool.Pool
	Router       *consumer.Router
	Dependencies *breaker.Set
	Janitor      *upkeep.Janitor
	Failed       *failed.Store
	Projector    *eventstore.Projector
	Auditor      *invariant.Auditor
	// Retention is that of the inbox.
	Retention time.Duration
	Brokers   *broker.Set
	// Tap has the messages that pass through this process.
	Tap Tap
	// StartedAt is when the service began to run; zero in a process that only
	// works beside one.
	StartedAt time.Time
}
