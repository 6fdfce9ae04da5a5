// Package wire writes messages to the brokers and reads them, as any other program would.
// It shares no code with the service.
package wire

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/cmd/proof/server"
)

// Consumers maps each consumed topic to its consumer.
var Consumers = map[string]string{
	"orders.created":            "fulfilment.place",
	"payments.requested":        "fulfilment.charge",
	"orders.completed":          "fulfilment.complete",
	"orders.cancel.requested":   "fulfilment.cancel",
	"orders.expiry.due":         "fulfilment.expire",
	"payments.refund.requested": "fulfilment.refund",
	"payments.reported":         "fulfilment.report",
	"inventory.restocked":       "inventory.restock",
	"user.created":              "account.create",
	"user.updated":              "account.update",
	"user.events":               "account.legacy",
	"notifications":             "notification.route",
	"notifications.email":       "notification.email",
	"notifications.webhook":     "notification.webhook",
	"notifications.log":         "notification.log",
	"analytics.track":           "analytics.track",
}

// Outputs are the topics that the service publishes and nobody consumes.
var Outputs = []string{
	"orders.rejected", "orders.cancelled", "orders.cancel.refused", "orders.expired", "payments.refunded", "payments.refund.failed", "user.profile.updated",
}

// Message is a message to publish.
type Message struct {
	Topic string
	// Key is the key of the payload's aggregate.
	Key string
	// Keyless means that the producer leaves the key to the payload.
	Keyless bool
	// ID is uuid.Nil if the producer sends none.
	ID      uuid.UUID
	Payload []byte
	// Number is sent in a header.
	Number int
}

// NumberHeader is the header of a message's number.
const NumberHeader = "proof-number"

// Place is a partition of a topic.
type Place struct {
	Topic     string
	Partition int32
}

func (p Place) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Partition) }

// Record is a message on a topic.
type Record struct {
	Place

	Offset int64
	ID     uuid.UUID
	// Causation is the message whose handling published this one, if the service did.
	Causation uuid.UUID
	At        time.Time
	Value     []byte
}

// Broker has the operations of a proof on a broker.
type Broker interface {
	// Publish returns once the broker has confirmed all messages.
	Publish(ctx context.Context, list []Message) error
	// Reset gives up what Publish uses, and opens it anew, after Publish has failed.
	Reset() error
	// Rebalance takes messages in hand away from replicas, and says how.
	Rebalance(ctx context.Context, random *rand.Rand) (string, error)
	// Backlog returns the number of unacknowledged messages on consumed topics.
	Backlog(ctx context.Context) (int, error)
	// Published returns what is on a topic, in order per key.
	Published(ctx context.Context, topic string) ([]Record, error)
	Close()
}

// patience is how long a step waits for the broker to make progress.
const patience = 3 * time.Minute

func until(ctx context.Context, what string, condition func() (bool, error)) error {
	return server.Until(ctx, what, patience, condition)
}
