package app_test

import (
	"testing"

	"github.com/millrace/millrace/internal/apptest"
	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/pgtest"
	"github.com/millrace/millrace/internal/poison"
)

func TestStatusCountsPoisonThatNobodyHasDecided(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	open := func() int64 {
		facts, err := s.Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		return facts.PoisonOpen
	}

	s.PublishMessage(event.Message{Topic: "orders.created", Payload: []byte("nonsense")})
	pgtest.Eventually(t, "the message is poisoned", func() bool { return open() == 1 })

	id := apptest.Value[int64](s, `SELECT id FROM poison`)
	if _, err := s.Poison.Discard(t.Context(), poison.Filter{IDs: []int64{id}}, poison.Actor{Who: "test", Why: "nonsense"}, poison.Pace{}); err != nil {
		t.Fatal(err)
	}

	if n := open(); n != 0 {
		t.Errorf("%d are open, expected none after the discard", n)
	}
}
