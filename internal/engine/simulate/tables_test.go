package simulate_test

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
)

// tables are the tables of the engine. Rows are values, so that a clone is a snapshot.
type tables struct {
	inbox      map[claim]int64
	keys       map[key]keyRow
	failed     map[int64]failedRow
	outbox     map[int64]outboxRow
	overtaking map[overtaken]overtakingRow
	paused     map[string]time.Time
	// effects is what the handlers have done, in order.
	effects []effect
	actions int
}

func newTables() *tables {
	return &tables{
		inbox: map[claim]int64{}, keys: map[key]keyRow{}, failed: map[int64]failedRow{}, outbox: map[int64]outboxRow{},
		overtaking: map[overtaken]overtakingRow{}, paused: map[string]time.Time{},
	}
}

func (t *tables) clone() *tables {
	return &tables{
		inbox: maps.Clone(t.inbox), keys: maps.Clone(t.keys), failed: maps.Clone(t.failed), outbox: maps.Clone(t.outbox),
		overtaking: maps.Clone(t.overtaking), paused: maps.Clone(t.paused), effects: slices.Clip(t.effects), actions: t.actions,
	}
}

type claim struct {
	consumer string
	id       uuid.UUID
}

type key struct{ consumer, key string }

func (k key) compare(other key) int {
	return cmp.Or(cmp.Compare(k.consumer, other.consumer), cmp.Compare(k.key, other.key))
}

type keyRow struct {
	due                   *time.Time
	awaits                []string
	leasedAt, leasedUntil *time.Time
}

type failedRow struct {
	id                                  int64
	state, consumer, topic, key         string
	failedKey                           *string
	messageID                           uuid.UUID
	fingerprint                         int64
	appliedAs                           *uuid.UUID
	origin, headers                     string
	payload, edited                     []byte
	revision, attempts, deliveries      int
	reason, err, cause, group           string
	firstAt, lastAt                     time.Time
	triedAt, awaitsSince, resolvedAt    *time.Time
	firstRelease, lastRelease, resolved string
}

// in reports whether the row waits or is stopped under a key.
func (r failedRow) in(k key) bool {
	return r.consumer == k.consumer && r.failedKey != nil && *r.failedKey == k.key
}

type outboxRow struct {
	seq                  int64
	shard                int16
	topic, key           string
	id, correlation      uuid.UUID
	causation            *uuid.UUID
	headers, traceparent *string
	payload              []byte
	createdAt            time.Time
	// availableAt is nil if the row is due.
	availableAt *time.Time
	refused     string
}

type overtaken struct {
	consumer, key string
	after         int64
}

type overtakingRow struct {
	messages int64
	lastIDs  []uuid.UUID
	lastAt   time.Time
}

// effect is what a handler did with a message.
type effect struct {
	consumer, key string
	n             int
	id            uuid.UUID
}

// failedIn returns the failed messages of a key in order, in one of states.
func (t *tables) failedIn(k key, states ...string) (rows []failedRow) {
	for _, id := range slices.Sorted(maps.Keys(t.failed)) {
		if r := t.failed[id]; r.in(k) && slices.Contains(states, r.state) {
			rows = append(rows, r)
		}
	}

	return rows
}
