package app_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// matching lists the tables that contain a row matching pattern.
func matching(s *apptest.Service, pattern string) string {
	var names []string

	for _, table := range apptest.Value[[]string](s, `
		SELECT array_agg(c.relname::text ORDER BY c.relname) FROM pg_class c
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'`) {
		// Bytes are matched as characters.
		if apptest.Value[bool](s, `
			SELECT EXISTS (SELECT FROM `+table+` AS x
			WHERE x::text ~ $1 OR EXISTS (
				SELECT FROM regexp_matches(x::text, '\\x((?:[0-9a-f]{2})+)', 'g') AS m
				WHERE encode(decode(m[1], 'hex'), 'escape') ~ $1))`, pattern) {
			names = append(names, table)
		}
	}

	return fmt.Sprint(names)
}

func TestAnErasedUserIsReadableNowhere(t *testing.T) {
	t.Parallel()

	const pattern = `Alice|alice@home|Berlin`

	operator := activity.Actor{Who: "op", Why: "a request"}

	// The mail server is busy, so e-mails are parked.
	server := mailtest.NewServer(t)
	server.Refuse(451, [3]int{4, 7, 1}, "greylisted")

	s := apptest.Start(t, mailing(server, 1000), func(c *config.Config) { c.Consumer.ParkInterval, c.Consumer.ParkMaxInterval = time.Hour, time.Hour })
	s.ExpectFailures()
	parkNotificationsOfAlice(t, s)
	stopMessagesAboutAlice(s)
	scheduleGoodbyeToAlice(t, s)

	pgtest.Eventually(t, "all messages have been processed", func() bool {
		return failedMessages(s, failed.Stopped) == 4 &&
			apptest.Value[int](s, `SELECT count(*) FROM outbox WHERE available_at IS NULL`) == 0 &&
			apptest.Value[int](s, `SELECT count(*) FROM users`) == 2
	})
	editMessageOfAlice(t, s, operator)

	if got := matching(s, pattern); got != "[failed_messages operator_actions outbox users]" {
		t.Fatalf("before the erasure: %s match", got)
	}

	done, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "u1", By: operator})
	if err != nil || done.Rows["notifications"] != 1 || done.Rows["users"] != 1 || done.Withdrawn != 3 || done.Emptied != 3 {
		t.Errorf("got %+v, %v", done, err)
	}

	pgtest.Eventually(t, "the projection has applied the erasure", func() bool {
		return apptest.Value[int](s, `SELECT version FROM users WHERE id = 'u1'`) == 2
	})

	if got := matching(s, pattern); got != "[]" {
		t.Errorf("after the erasure: %s match", got)
	}

	// A late message is stopped with its content. Erasing again removes the content.
	s.Publish("user.created", `{"user":{"id":"u1","name":"Alice","email":"alice@home.example"}}`)
	pgtest.Eventually(t, "the late message is stopped", func() bool { return failedMessages(s, failed.Stopped) == 5 })

	if done, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "u1", By: operator}); err != nil || done.Emptied != 1 {
		t.Errorf("again: got %+v, %v", done, err)
	}

	if got := matching(s, pattern); got != "[]" {
		t.Errorf("after the second erasure: %s match", got)
	}

	if n := apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE state = 'stopped' AND payload <> ''`); n != 1 {
		t.Errorf("%d entries have content, expected only the other user's", n)
	}
}

func TestAnUnknownUserIsNotErased(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Publish("user.created", `{"user":{"id":"u1","name":"Alice","email":"alice@home.example"}}`)
	s.WaitUntilIdle()

	_, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "nobody", By: activity.Actor{Who: "op", Why: "a request"}})
	if event.KindOf(err) != event.NotFound {
		t.Errorf("got %v", err)
	}
}

// parkNotificationsOfAlice creates Alice (u1) and Bob (u2) on a service whose mail
// server is busy. Their welcomes are parked, and Alice's next notification is blocked
// behind hers.
func parkNotificationsOfAlice(t *testing.T, s *apptest.Service) {
	t.Helper()

	parked := func(n int) func() bool {
		return func() bool { return failedMessages(s, failed.Waiting) == n }
	}

	s.Publish("notifications", `{"user_id":"u1","content":"Hello Alice","channel":"log"}`)
	s.Messages("notifications", 1)
	s.Publish("user.created", `{"user":{"id":"u1","name":"Alice","email":"alice@home.example","city":"Berlin"}}`)
	pgtest.Eventually(t, "the welcome is parked", parked(1))
	s.Publish("notifications", `{"user_id":"u1","content":"Hello again, Alice"}`)
	pgtest.Eventually(t, "the later notification is blocked", parked(2))
	s.Publish("user.created", `{"user":{"id":"u2","name":"Bob","email":"bob@example.com"}}`)
	pgtest.Eventually(t, "the other user's welcome is parked", parked(3))
}

// stopMessagesAboutAlice publishes messages that will be stopped: one with her key, one
// with another key, one in the old format, and one about another user, whose name is
// her id.
func stopMessagesAboutAlice(s *apptest.Service) {
	s.PublishMessage(event.Message{Topic: "user.created", Key: "u1", Payload: []byte(`{"user":{"id":"u1","name":"Alice Two","email":"alice@home.example"}}`)})
	s.PublishMessage(event.Message{Topic: "user.created", Key: "x", Payload: []byte(`{"user":{"id":"u1","name":"Alice"}}`)})
	s.PublishMessage(event.Message{Topic: "user.events", Key: "y", Payload: []byte(`{"userId":"u\u0031","userName":"Alice","action":"rename"}`)})
	s.PublishMessage(event.Message{Topic: "user.created", Key: "z", Payload: []byte(`{"user":{"id":"u2","name":"u1"}}`)})
}

// scheduleGoodbyeToAlice publishes a notification that is due in an hour.
func scheduleGoodbyeToAlice(t *testing.T, s *apptest.Service) {
	t.Helper()

	err := postgres.InTx(t.Context(), s.Pool, func(tx pgx.Tx) error {
		later := event.Start(notification.Requested{UserID: "u1", Content: "Goodbye Alice"})
		later.Delay = time.Hour

		return outbox.Append(t.Context(), tx, []event.Outgoing{later})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// editMessageOfAlice edits the invalid stopped message about Alice.
func editMessageOfAlice(t *testing.T, s *apptest.Service, by activity.Actor) {
	t.Helper()

	id := apptest.Value[int64](s, `SELECT id FROM failed_messages WHERE key = 'u1' AND topic = 'user.created' AND reason = 'invalid'`)
	corrected := []byte(`{"user":{"id":"u1","name":"Alice","email":"alice@home.example"}}`)

	if _, err := s.Failed.Edit(t.Context(), id, failed.Edit{Revision: 1, Payload: corrected}, by, s.Router.Check); err != nil {
		t.Fatal(err)
	}
}

func failedMessages(s *apptest.Service, state failed.State) int {
	return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE state = $1`, state)
}
