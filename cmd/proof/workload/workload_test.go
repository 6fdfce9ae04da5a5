package workload_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/cmd/proof/record"
	"github.com/millracehq/millrace/cmd/proof/wire"
	"github.com/millracehq/millrace/cmd/proof/workload"
)

var size = workload.Size{Rate: 50, Duration: time.Minute, Products: 10, Stock: 100, Aborted: true}

func payloads(seed uint64) (list []string) {
	for _, m := range workload.New(seed, size).Messages {
		if m.Topic != "analytics.track" { // which has the time
			list = append(list, m.Topic+" "+string(m.Payload))
		}
	}

	return list
}

func TestASeedDecidesTheMessages(t *testing.T) {
	t.Parallel()

	if !slices.Equal(payloads(1), payloads(1)) || slices.Equal(payloads(1), payloads(2)) {
		t.Error("the seed does not decide the messages")
	}
}

func TestAWorkloadHasEveryKindOfMessage(t *testing.T) {
	t.Parallel()

	kinds := map[string]int{}

	for _, m := range workload.New(1, size).Messages {
		kinds["on "+m.Topic]++
		kinds["fate "+string(m.Fate)+" "+m.Reason]++

		switch {
		case m.Copy && m.ID == uuid.Nil:
			kinds["a copy without an id"]++
		case m.Copy:
			kinds["a copy"]++
		case m.ID.Version() == 4:
			kinds["a UUIDv4"]++
		case m.ID.Version() == 7:
			kinds["a UUIDv7"]++
		}

		if m.Order != nil && m.Order.Declined {
			kinds["a declined order"]++
		}

		if m.Order != nil && m.Order.Cancelled {
			kinds["a cancelled order"]++
		}
	}

	for _, kind := range []string{
		"on orders.created", "on orders.cancel.requested", "on inventory.restocked", "on user.created", "on user.updated", "on user.events",
		"on notifications", "on analytics.track", "on payments.requested", "fate applied ", "fate stopped malformed", "fate stopped invalid",
		"fate stopped too_large", "fate stopped refused", "fate rival conflict", "fate aborted ", "a copy", "a copy without an id", "a UUIDv4",
		"a UUIDv7", "a declined order", "a cancelled order",
	} {
		if kinds[kind] == 0 {
			t.Errorf("there is no message %s", kind)
		}
	}
}

// The checker knows the order in which the messages of a key are to be applied from the
// order of sending, so a copy must not precede what it repeats.
func TestACopyFollowsItsOriginal(t *testing.T) {
	t.Parallel()

	seen := map[uuid.UUID]*record.Message{}

	for i, m := range workload.New(1, size).Messages {
		if m.Number != i || wire.Consumers[m.Topic] == "" {
			t.Errorf("message %d has number %d and topic %s", i, m.Number, m.Topic)
		}

		if m.Copy && m.ID != uuid.Nil && (seen[m.ID] == nil || string(seen[m.ID].Payload) != string(m.Payload)) {
			t.Errorf("message %d repeats nothing", i)
		}

		if !m.Copy && seen[m.ID] != nil && m.Fate != record.Rival {
			t.Errorf("message %d has the id of another", i)
		}

		seen[m.ID] = m
	}
}
