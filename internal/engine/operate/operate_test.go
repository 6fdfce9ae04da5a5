package operate_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
)

func TestOutcomesOfErrors(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		err          error
		exit, status int
	}{
		"not-found":   {event.Missing("order", "x"), 3, http.StatusNotFound},
		"unknown":     {event.UnknownName("topic", "x", nil), 2, http.StatusNotFound},
		"conflict":    {event.Errorf(event.Conflict, "resolved"), 1, http.StatusConflict},
		"overtaken":   {event.Errorf(event.Overtaken, "overtaken"), 1, http.StatusConflict},
		"key-change":  {event.Errorf(event.KeyChange, "key"), 1, http.StatusConflict},
		"changed":     {failed.ChangedError(1), 1, http.StatusPreconditionFailed},
		"invalid":     {failed.ErrNoReason, 2, http.StatusUnprocessableEntity},
		"rejected":    {event.Reject(errors.New("no")), 4, http.StatusUnprocessableEntity},
		"unavailable": {context.DeadlineExceeded, 1, http.StatusServiceUnavailable},
		"internal":    {errors.New("other"), 1, http.StatusInternalServerError},
	} {
		got := operate.OutcomeOf(fmt.Errorf("doing something: %w", c.err))
		if want := (operate.Outcome{Name: name, Exit: c.exit, Status: c.status}); got != want {
			t.Errorf("%v: got %+v, expected %+v", c.err, got, want)
		}
	}
}

func TestATapKeepsMessagesBetweenReads(t *testing.T) {
	t.Parallel()

	var tap operate.Tap

	pass := func(n int) {
		for range n {
			tap.Passed("t", message.NewMessage("id", []byte("{}")))
		}
	}

	pass(3) // before the first read

	start := tap.After(t.Context(), "t", -1, 0)
	if len(start.Messages) != 0 || start.Next != 0 {
		t.Errorf("got %+v", start)
	}

	pass(2)
	tap.Passed("other", message.NewMessage("id", []byte("{}")))

	first := tap.After(t.Context(), "t", start.Next, 0)
	if len(first.Messages) != 2 || first.Next != 2 || first.Lost != 0 {
		t.Errorf("got %d messages, %+v", len(first.Messages), first)
	}

	pass(2500)

	second := tap.After(t.Context(), "t", first.Next, 0)
	if kept := int64(len(second.Messages)); kept == 0 || kept+second.Lost != 2500 || second.Next != 2502 {
		t.Errorf("got %d messages, %d lost, next %d", kept, second.Lost, second.Next)
	}

	go func() {
		time.Sleep(20 * time.Millisecond)
		pass(1)
	}()

	if third := tap.After(t.Context(), "t", second.Next, time.Minute); len(third.Messages) != 1 {
		t.Errorf("got %+v", third)
	}
}

func TestTheAPIKnowsAllReasons(t *testing.T) {
	t.Parallel()

	field, _ := reflect.TypeFor[operate.Selection]().FieldByName("Reason")
	known := strings.Split(field.Tag.Get("enum"), ",")

	for _, reason := range event.Reasons {
		if !slices.Contains(known, string(reason)) {
			t.Errorf("%s is missing", reason)
		}
	}

	if len(known) != len(event.Reasons) {
		t.Errorf("got %v, expected %v", known, event.Reasons)
	}
}
