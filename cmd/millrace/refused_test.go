package main

import (
	"testing"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestRefusedMessagesAreListedRetriedAndDiscarded(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t)

	_, err := pool.Exec(t.Context(), `
		INSERT INTO outbox (shard, topic, key, message_id, payload, correlation_id, available_at, refused)
		SELECT 0, 'orders.created', 'o', id, '{}', id, 'infinity', 'Message was too large'
		FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, 3)) AS ids`)
	if err != nil {
		t.Fatal(err)
	}

	for _, step := range []struct {
		args, says string
		code       int
	}{
		{"refused list", "Message was too large", 0},
		{"refused list --topic payments.requested", "", 0},
		{"status", "3 messages are refused by their broker", exitFailure},
		{"refused retry", "ID: is missing", exitUsage},
		{"refused discard 1", "why: is missing", exitUsage},
		{"refused discard 1 7 --why test", "1 of 2 messages discarded", 0},
		{"refused discard 1 --why test", "there is no refused message", exitNotFound},
		{"refused retry 3 --why larger", "1 of 1 message will be published again", 0},
		{"activity", "discarded", 0},
	} {
		expect(t, url, step.args, step.code, step.says)
	}

	left := pgtest.Value[string](t, pool, `SELECT string_agg(seq || ' ' || coalesce(refused, 'due'), ', ' ORDER BY seq) FROM outbox`)
	if left != "2 Message was too large, 3 due" {
		t.Errorf("got %s", left)
	}
}
