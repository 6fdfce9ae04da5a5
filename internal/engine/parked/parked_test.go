package parked_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/parked"
	"github.com/millracehq/millrace/internal/engine/poison"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func newStore(t *testing.T) (*parked.Store, *pgxpool.Pool) {
	t.Helper()

	pool := pgtest.New(t)

	return parked.NewStore(pool, poison.NewStore(poison.DefaultConfig(), pool)), pool
}

// failed is a message of key k that failed once.
func failed() parked.Message {
	return parked.Message{
		Consumer: "writer", Topic: "notes", Key: "k", MessageID: event.NewID(), Headers: event.Headers{},
		Payload: []byte(`{}`), Attempts: 1, Error: "it is broken",
	}
}

// park parks a message and returns it with its sequence number.
func park(t *testing.T, s *parked.Store, m parked.Message, wait time.Duration) parked.Message {
	t.Helper()

	if err := s.Park(t.Context(), m, wait); err != nil {
		t.Fatal(err)
	}

	head, ok, err := s.Head(t.Context(), parked.Key{Consumer: m.Consumer, Key: m.Key})
	if err != nil || !ok {
		t.Fatalf("%t, %v", ok, err)
	}

	return head
}

func TestAMessageIsParkedWhileItsKeyIsBeingFreed(t *testing.T) {
	t.Parallel()

	s, pool := newStore(t)
	first := park(t, s, failed(), 0)

	// What Finish does, in slow motion.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()

	if _, err := tx.Exec(t.Context(), `SELECT FROM parked_keys WHERE key = 'k' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}

	second, done := failed(), make(chan error, 1)
	go func() { done <- s.Park(t.Context(), second, time.Hour) }()

	pgtest.Eventually(t, "the second waits for the key", func() bool {
		return pgtest.Value[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
	})

	for _, sql := range []string{`DELETE FROM parked`, `DELETE FROM parked_keys`} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	if err := errors.Join(tx.Commit(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}

	list, err := s.List(t.Context(), parked.Filter{}, 10)
	if err != nil || len(list) != 1 || list[0].MessageID != second.MessageID || list[0].MessageID == first.MessageID || time.Until(list[0].DueAt) < 50*time.Minute {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAnAttemptThatEndsAfterItsMessageWasSkippedHoldsNoOther(t *testing.T) {
	t.Parallel()

	s, _ := newStore(t)
	first := park(t, s, failed(), 0)
	park(t, s, failed(), 0) // behind it

	if err := s.Skip(t.Context(), first.Seq, poison.Actor{Who: "test"}); err != nil {
		t.Fatal(err)
	}

	first.Attempts++

	if err := s.Park(t.Context(), first, time.Hour); err != nil { // the attempt was under way meanwhile
		t.Fatal(err)
	}

	list, err := s.List(t.Context(), parked.Filter{}, 10)
	if err != nil || len(list) != 1 || list[0].Seq == first.Seq || time.Until(list[0].DueAt) > time.Minute {
		t.Errorf("%+v, %v", list, err)
	}
}
