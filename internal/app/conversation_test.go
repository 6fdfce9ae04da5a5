package app_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/trace"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func render(messages []*trace.Message, service *apptest.Service) string {
	var parts []string

	for _, m := range messages {
		topic := m.Topic
		if m.Consumer != "" {
			for _, route := range service.Router.Routes() {
				if route.Consumer == m.Consumer {
					topic = route.Topic
				}
			}
		}

		parts = append(parts, fmt.Sprintf("%s(%s)%s", topic, m.State, render(m.Caused, service)))
	}

	if len(parts) == 0 {
		return ""
	}

	return "[" + strings.Join(parts, " ") + "]"
}

func TestAConversationIncludesUnconsumedMessages(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)

	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@home.example"}}`)
	s.Messages("notifications", 1)

	id := s.Publish("user.updated", `{"user_id":"alice","updates":{"name":"Alicia"}}`)
	s.WaitUntilIdle()

	pgtest.Eventually(t, "the published message is recorded", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM published_messages`) > 0
	})

	roots, err := s.Operator.Trace(t.Context(), id.String())
	if err != nil {
		t.Fatal(err)
	}

	if got := render(roots, s); !strings.Contains(got, "user.updated(applied)") || !strings.Contains(got, "user.profile.updated(published)") {
		t.Errorf("got %s", got)
	}

	leaf := roots[0].Caused[0]
	if again, err := s.Operator.Trace(t.Context(), leaf.ID.String()); err != nil || render(again, s) != render(roots, s) {
		t.Errorf("from the published message: %s, %v", render(again, s), err)
	}
}

func TestAConversationIsATree(t *testing.T) {
	t.Parallel()

	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

	s := apptest.Start(t)
	s.Seed()

	id := s.PublishMessage(event.Message{
		Topic: "orders.created", Key: "order_123", Payload: []byte(guide(t, "orders.created")),
		Headers: event.Headers{event.HeaderTraceParent: traceparent},
	})
	s.Messages("orders.completed", 1)

	last := s.Messages("orders.completed", 1)[0]
	for _, asked := range []string{id.String(), last.ID.String(), "order_123"} {
		roots, err := s.Operator.Trace(t.Context(), asked)
		if err != nil {
			t.Fatal(err)
		}

		if got := render(roots, s); got != "[orders.created(applied)[payments.requested(applied)[orders.completed(applied)]]]" {
			t.Errorf("got %s", got)
		}
	}

	// The trace context is propagated through each hop.
	for _, topic := range []string{"payments.requested", "orders.completed"} {
		if got := s.Messages(topic, 1)[0].Headers[event.HeaderTraceParent]; got != traceparent {
			t.Errorf("%s has traceparent %q", topic, got)
		}
	}

	for _, unknown := range []string{event.NewID().String(), "order_124", ""} {
		if _, err := s.Operator.Trace(t.Context(), unknown); event.KindOf(err) != event.NotFound {
			t.Errorf("the conversation of %q: expected that there is none, got %v", unknown, err)
		}
	}
}

func TestTheConversationsOfAKeyIncludeMessagesThatFailed(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Seed()
	s.ExpectFailures()
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@home.example"}}`)
	s.Messages("notifications", 1)
	s.Publish("user.updated", `{"user_id":"alice","updates":{"name":"Alicia"}}`)
	s.PublishMessage(event.Message{Topic: "user.updated", Key: "alice", Payload: []byte(`{"user_id":"alice","updates":7}`)})
	pgtest.Eventually(t, "the last message is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE state = 'stopped'`) == 1
	})
	s.WaitUntilIdle()

	roots, err := s.Operator.Trace(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}

	if got := render(roots, s); !strings.HasPrefix(got, "[user.created(applied)[") || !strings.Contains(got, "] user.updated(applied)[") || !strings.HasSuffix(got, "] user.updated(stopped)]") {
		t.Errorf("got %s", got)
	}
}

func TestAParkedMessageIsInItsConversation(t *testing.T) {
	t.Parallel()

	server := mailtest.NewServer(t)
	server.Refuse(451, [3]int{4, 7, 1}, "greylisted")

	s := apptest.Start(t, mailing(server, 1000), func(c *config.Config) {
		c.Consumer.ParkInterval, c.Consumer.ParkMaxInterval = time.Hour, time.Hour
	})
	s.ExpectFailures()
	id := s.Publish("user.created", guide(t, "user.created"))
	pgtest.Eventually(t, "the welcome is parked and no longer in the outbox", func() bool {
		return apptest.Value[bool](s, `SELECT (SELECT count(*) FROM failed_messages) = 1 AND (SELECT count(*) FROM outbox) = 0`)
	})

	parked := apptest.Value[uuid.UUID](s, `SELECT message_id FROM failed_messages`)
	for _, asked := range []uuid.UUID{id, parked} {
		roots, err := trace.Find(t.Context(), s.Pool, asked)
		if err != nil {
			t.Fatal(err)
		}

		if got := render(roots, s); got != "[user.created(applied)[notifications(applied)[notifications.email(parked)]]]" {
			t.Errorf("got %s", got)
		}

		if detail := roots[0].Caused[0].Caused[0].Detail; !strings.HasPrefix(detail, "failed 1 times: sending e-mail: ") {
			t.Errorf("got %s", detail)
		}
	}
}
