package event_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/millracehq/millrace/internal/engine/event"
)

func TestErrorsSuggestTheClosestName(t *testing.T) {
	t.Parallel()

	known := []string{"orders.created", "orders.completed", "user.created"}

	for want, err := range map[string]error{
		"there is no order o-1": event.Missing("order", "o-1"),
		"there is no topic orders.creatd; did you mean orders.created?":                       event.UnknownName("topic", "orders.creatd", known),
		"there is no topic usr.created; did you mean user.created?":                           event.UnknownName("topic", "usr.created", known),
		"there is no topic x, expected one of orders.created, orders.completed, user.created": event.UnknownName("topic", "x", known),
		"there is no topic , expected one of orders.created, orders.completed, user.created":  event.UnknownName("topic", "", known),
		"there is no topic Orders.Craeted; did you mean orders.created?":                      event.UnknownName("topic", "Orders.Craeted", known),
		"there is no x ab; did you mean ac or ad?":                                            event.UnknownName("x", "ab", []string{"ac", "ad", "cd"}),
		"entry 3 is discarded": event.Errorf(event.Conflict, "entry %d is %s", 3, "discarded"),
	} {
		if err.Error() != want {
			t.Errorf("got %q, expected %q", err, want)
		}
	}

	if kind := event.KindOf(fmt.Errorf("reading: %w", event.Missing("order", "x"))); kind != event.NotFound {
		t.Errorf("got kind %q", kind)
	}

	if kind := event.KindOf(errors.New("other")); kind != "" {
		t.Errorf("got kind %q", kind)
	}
}
