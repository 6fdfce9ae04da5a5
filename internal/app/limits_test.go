package app_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// What an erasure reads, it reads in the transaction that writes, so projections wait for
// it to end.
func TestAnErasureHoldsUpProjectionsWhileItReads(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.ExpectFailures()
	s.Publish("user.created", `{"user":{"id":"u1","name":"Alice","email":"alice@home.example"}}`)
	s.PublishMessage(event.Message{Topic: "user.updated", Key: "u1", Payload: []byte(`{"user_id":"u1","updates":7}`)})
	pgtest.Eventually(t, "the update is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE state = 'stopped'`) == 1
	})
	s.WaitUntilIdle()

	// A lock without a transaction id stops the erasure once it has read failed messages
	// and edits, before it ends.
	locked, err := s.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	defer func() { _ = locked.Rollback(context.WithoutCancel(t.Context())) }()

	if _, err := locked.Exec(t.Context(), `LOCK TABLE user_keys IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}

	erased := make(chan error, 1)

	go func() {
		_, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "u1", By: activity.Actor{Who: "op", Why: "a request"}})
		erased <- err
	}()

	pgtest.Eventually(t, "the erasure waits", pgtest.LockWaits(t, s.Pool))

	brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()

	if _, err := eventstore.Horizon(brief, s.Pool); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("projections may go on: %v", err)
	}

	if err := locked.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	if err := <-erased; err != nil {
		t.Fatal(err)
	}

	if _, err := eventstore.Horizon(t.Context(), s.Pool); err != nil {
		t.Error(err)
	}
}

// Retention is off by default, and no task of upkeep concerns the records of payments.
func TestUpkeepKeepsMissesNotificationsAndPaymentsIndefinitely(t *testing.T) {
	t.Parallel()

	const old = `now() - interval '10 years'`

	s := apptest.Start(t)
	rows := map[string]string{
		"user_misses":    `(message_id, user_id, missed_at) VALUES (gen_random_uuid(), 'u', ` + old + `)`,
		"notifications":  `(message_id, user_id, channel, status, answer, sent_at) VALUES (gen_random_uuid(), 'u', 'log', 'sent', '', ` + old + `)`,
		"stripe_intents": `(idempotency_key, order_id, attempt, intent_id, created_at) VALUES ('k', 'o', 1, 'pi', ` + old + `)`,
		"gateway_ledger": `(idempotency_key, order_id, attempt, amount, currency, transaction_id, settled_at) VALUES ('k', 'o', 1, 5, 'USD', 't', ` + old + `)`,
	}

	for table, row := range rows {
		if _, err := s.Pool.Exec(t.Context(), `INSERT INTO `+table+` `+row); err != nil {
			t.Fatal(table, err)
		}
	}

	if _, err := s.Operator.Upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}

	for table := range rows {
		if n := apptest.Value[int](s, `SELECT count(*) FROM `+table); n != 1 {
			t.Errorf("%s has %d rows, expected the old one", table, n)
		}
	}
}
