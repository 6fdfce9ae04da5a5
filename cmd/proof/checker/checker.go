// Package checker compares what the service has left in Postgres and on the topics with
// what was sent and with what the outside world saw. It shares no code with the service:
// its queries and its knowledge of the order process are its own.
package checker

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/record"
)

// Invariant is a number and what must hold.
type Invariant int

// Invariants, in the order of docs/guarantees.md.
const (
	Ended Invariant = 1 + iota
	Stock
	Money
	Compensation
	Streams
	Topics
	Order
	Inbox
	Failed
	Stuck
	Logs
	Offsets
)

// Invariants says what must hold.
var Invariants = map[Invariant]string{
	Ended:        "every accepted order has ended once, or has an open failed message",
	Stock:        "initial and restocked goods are available, reserved or sold",
	Money:        "an order is captured once if it is completed, and nothing is kept otherwise",
	Compensation: "compensation happens once, and only for what was done",
	Streams:      "versions have no gaps, and events lead to the state",
	Topics:       "what was committed is on its topic, and nothing else",
	Order:        "the messages of a key are in order",
	Inbox:        "each message is recorded once for its consumer, together with its effects",
	Failed:       "failed messages keep their bytes, and no good message is among them",
	Stuck:        "nothing is stuck",
	Logs:         "no secret and no payload is in the logs",
	Offsets:      "nothing is acknowledged while it is in hand",
}

// Violation says what was found instead.
type Violation struct {
	Invariant Invariant `json:"invariant"`
	// Subject is what it is about: a key, an id.
	Subject  string `json:"subject"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
}

func (v Violation) String() string {
	return fmt.Sprintf("invariant %d (%s): %s: expected %s, found %s", v.Invariant, Invariants[v.Invariant], v.Subject, v.Expected, v.Found)
}

// check is a run of the checker.
type check struct {
	rec   *record.Record
	state *state
	found []Violation
	// sent are the messages without their copies, by topic.
	sent map[string][]*record.Message
	// orders are the bodies that were sent, by id.
	orders map[string][]*record.Order
}

// Check returns the violations in a database at rest.
func Check(ctx context.Context, db *pgxpool.Pool, rec *record.Record) ([]Violation, error) {
	s, err := read(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("reading what the service has left: %w", err)
	}

	c := &check{rec: rec, state: s, sent: map[string][]*record.Message{}, orders: map[string][]*record.Order{}}

	for _, m := range rec.Messages {
		if m.Copy {
			continue
		}

		c.sent[m.Topic] = append(c.sent[m.Topic], m)

		if m.Order != nil {
			c.orders[m.Key] = append(c.orders[m.Key], m.Order)
		}
	}

	for _, f := range rec.Findings {
		c.add(Offsets, f, "a message that is applied or stored as failed", "neither")
	}

	for _, fn := range []func(){
		c.ended, c.stock, c.money, c.compensation, c.streams, c.users, c.topics, c.order, c.inbox, c.analytics, c.notifications, c.failed, c.stuck,
	} {
		fn()
	}

	return c.found, c.logs()
}

func (c *check) add(i Invariant, subject, expected, found string, args ...any) {
	c.found = append(c.found, Violation{Invariant: i, Subject: subject, Expected: expected, Found: fmt.Sprintf(found, args...)})
}

// Print prints violations for people, by invariant.
func Print(w io.Writer, list []Violation) {
	const most = 10

	count := map[Invariant]int{}

	for _, v := range slices.SortedStableFunc(slices.Values(list), func(a, b Violation) int { return int(a.Invariant - b.Invariant) }) {
		if count[v.Invariant]++; count[v.Invariant] <= most {
			fmt.Fprintln(w, v)
		}
	}

	for i := Ended; i <= Offsets; i++ {
		if count[i] > most {
			fmt.Fprintf(w, "invariant %d: %d violations, of which %d are shown\n", i, count[i], most)
		}
	}
}
