package outbox_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestUnconsumedMessagesAreRecordedOnce(t *testing.T) {
	t.Parallel()

	const messages = 500

	pool := pgtest.New(t)
	r := outbox.NewRelay(outbox.DefaultConfig(), pool, pgtest.Logger(t), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(context.Background())

	var running sync.WaitGroup

	running.Go(func() { r.Run(ctx, outbox.Target{Publisher: &log{}, Lanes: 8, Unconsumed: []string{"unconsumed"}}) })

	for i := range messages {
		topic := "consumed"
		if i%5 == 0 {
			topic = "unconsumed"
		}

		appendMessages(t, pool, event.Message{ID: event.NewID(), Topic: topic, Key: fmt.Sprint(i % 50), Payload: []byte("{}")})
		r.Wake()
	}

	pgtest.Eventually(t, "everything is published", empty(t, pool))
	cancel() // the drain records them too
	running.Wait()

	if n := pgtest.Value[int](t, pool, `SELECT count(DISTINCT message_id)::int FROM published_messages WHERE topic = 'unconsumed'`); n != messages/5 {
		t.Errorf("%d messages are recorded, expected %d", n, messages/5)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM published_messages`); n != messages/5 {
		t.Errorf("%d rows are recorded, expected %d", n, messages/5)
	}
}
