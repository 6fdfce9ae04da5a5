package driver_test

import (
	"testing"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
)

// TestAMessageWithoutAnyIDGetsANewOneWithEachDelivery shows a known limit of RabbitMQ, which
// gives messages no coordinates. On Kafka the coordinates are the id.
func TestAMessageWithoutAnyIDGetsANewOneWithEachDelivery(t *testing.T) {
	t.Parallel()

	for coordinates, same := range map[string]bool{"": false, "orders/0@42": true} {
		first := driver.Received(event.Headers{}, driver.Identity{Coordinates: coordinates}, []byte(`{}`))
		again := driver.Received(event.Headers{}, driver.Identity{Coordinates: coordinates}, []byte(`{}`))

		if (first.UUID == again.UUID) != same {
			t.Errorf("with the coordinates %q: %s, then %s", coordinates, first.UUID, again.UUID)
		}
	}
}
