package event

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Append stores events in tx, which are published after it commits. Handlers
// return their events instead; Append is for code outside a consumer, such as
// a webhook.
type Append func(ctx context.Context, tx pgx.Tx, events []Outgoing) error
