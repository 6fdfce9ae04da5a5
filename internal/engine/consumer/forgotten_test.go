package consumer_test

import (
	"context"
	"testing"
	"time"

	watermill "github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

// The inbox may have forgotten a message only if both the message and the database are
// older than the inbox's retention.
func TestAMessageIsStoppedOnlyIfItMayBeForgotten(t *testing.T) {
	t.Parallel()

	const retention = 7 * 24 * time.Hour

	ago := func(d time.Duration) string { return time.Now().Add(-d).Format(time.RFC3339) }

	for name, c := range map[string]struct {
		written, age string
		stopped      bool
	}{
		"an old one":                     {ago(retention + time.Hour), "8 days", true},
		"an old one in a young database": {ago(retention + time.Hour), "6 days", false},
		"a recent one":                   {ago(retention - time.Hour), "8 days", false},
		"one whose time is unknown":      {"", "8 days", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			h := prepareHanding(t)
			h.router.Remember(retention)
			h.run(t)

			if _, err := h.pool.Exec(t.Context(), `UPDATE goose_db_version SET tstamp = now() - $1::interval`, c.age); err != nil {
				t.Fatal(err)
			}

			m := message("a", "1")
			msg := watermill.NewMessage(m.ID.String(), m.Payload)
			msg.SetContext(context.Background())
			msg.Metadata.Set(event.HeaderWritten, c.written)
			h.out <- msg
			<-msg.Acked()

			entries, err := failed.NewStore(failed.DefaultConfig(), h.pool).List(t.Context(), failed.Filter{}, 2)
			if stopped := len(entries) == 1 && entries[0].Reason == event.ReasonForgotten; err != nil || stopped != c.stopped || stopped == (h.effects.Load() == 1) {
				t.Errorf("got %+v and %d effects, %v", entries, h.effects.Load(), err)
			}
		})
	}
}
