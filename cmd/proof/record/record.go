// Package record is what a proof itself knows: every message that it sent, and what the
// outside world (the payment provider, the mail server, the receiver of webhooks) saw.
// The checker compares it with the tables and the topics.
package record

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
)

// Fate is what must become of a message.
type Fate string

// Fates.
const (
	// Applied messages take effect once.
	Applied Fate = "applied"
	// Stopped messages end as failed messages, for Message.Reason.
	Stopped Fate = "stopped"
	// Rival messages have the id of another one and a different payload: one of them is
	// applied, and the others are stopped as conflicts.
	Rival Fate = "rival"
	// Aborted messages were part of a transaction that was aborted: nothing may come of them.
	Aborted Fate = "aborted"
)

// Message is a message that was sent at least once.
type Message struct {
	// Number is the place in the order of sending.
	Number int `json:"number"`
	// At is when the message was planned to be sent, from the start of the load.
	At    time.Duration `json:"at"`
	Topic string        `json:"topic"`
	// Key is the key of the aggregate, as far as the payload has one.
	Key string `json:"key"`
	// Keyless means that the broker got no key.
	Keyless bool `json:"keyless,omitempty"`
	// ID is zero if the producer sends none.
	ID      uuid.UUID `json:"id"`
	Payload []byte    `json:"payload"`
	Fate    Fate      `json:"fate"`
	Reason  string    `json:"reason,omitempty"`
	// Copy means that an earlier message had the same id and payload, or the same order
	// without an id.
	Copy bool `json:"copy,omitempty"`
	// Sent is set once the broker has confirmed the message.
	Sent bool `json:"sent,omitempty"`

	// What the message is about, depending on its topic.
	Order   *Order `json:"order,omitempty"`
	User    *User  `json:"user,omitempty"`
	Restock *Line  `json:"restock,omitempty"`
	Event   string `json:"event,omitempty"`
	Channel string `json:"channel,omitempty"`
}

// Order is an order that was sent.
type Order struct {
	Lines []Line `json:"lines"`
	// Total is in cents.
	Total int64 `json:"total"`
	// Declined means that the provider declines the charge.
	Declined bool `json:"declined,omitempty"`
	// Cancelled means that a cancellation is also sent.
	Cancelled bool `json:"cancelled,omitempty"`
}

// Line is a quantity of a product.
type Line struct {
	Product  string `json:"product"`
	Quantity int64  `json:"quantity"`
}

// User is what a message does to a user: values of fields, with name and email among them.
type User struct {
	Create bool           `json:"create,omitempty"`
	Fields map[string]any `json:"fields"`
}

// Charge is a payment at the provider.
type Charge struct {
	Order       string `json:"order"`
	Transaction string `json:"transaction"`
	// Amount is in cents.
	Amount   int64 `json:"amount"`
	Captures int   `json:"captures"`
	Declined bool  `json:"declined,omitempty"`
	// Refunds are the amounts that were returned.
	Refunds []Refund `json:"refunds,omitempty"`
}

// Refund is money that went back.
type Refund struct {
	ID     string `json:"id"`
	Amount int64  `json:"amount"`
}

// Delivery is an e-mail or a webhook that its receiver accepted.
type Delivery struct {
	ID   string `json:"id"`
	Body string `json:"body"`
}

// Published is a message that was read from a topic.
type Published struct {
	ID        uuid.UUID `json:"id"`
	Causation uuid.UUID `json:"causation"`
	// Place and Offset say where it was; messages of a key have the same place.
	Place  string `json:"place"`
	Offset int64  `json:"offset"`
	Value  []byte `json:"value"`
}

// Record is everything that a proof knows of a run.
type Record struct {
	Seed   uint64 `json:"seed"`
	Broker string `json:"broker"`
	// Stock is the initial stock by product.
	Stock map[string]int64 `json:"stock"`
	// Secrets must not appear in logs.
	Secrets []string `json:"secrets"`
	// Logs are the files with the logs of the replicas.
	Logs []string `json:"logs"`

	Messages []*Message `json:"messages"`
	// Edited are the payloads that operators gave stopped messages, by message id.
	Edited   map[uuid.UUID][]byte `json:"edited"`
	Charges  []Charge             `json:"charges"`
	Mails    []Delivery           `json:"mails"`
	Webhooks []Delivery           `json:"webhooks"`
	// Topics holds what was read from each topic, in order per key. It is nil on the
	// embedded broker.
	Topics map[string][]Published `json:"topics"`
	// Findings are violations that were seen while the run lasted.
	Findings []string `json:"findings"`
}

// Save writes the record to a file.
func (r *Record) Save(path string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}

	return os.WriteFile(path, data, 0o600)
}

// Load reads a record that Save has written.
func Load(path string) (*Record, error) {
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, err
	}

	r := &Record{}

	return r, json.Unmarshal(data, r)
}
