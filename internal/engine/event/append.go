package event

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Append stores events in tx; they are published after it commits. It is for code
// outside consumers, such as webhooks. Handlers return their events instead.
type Append func(ctx context.Context, tx pgx.Tx, events []Outgoing) error
