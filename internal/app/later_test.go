package app_test

import (
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func mailing(server *mailtest.Server, attempts int) func(*config.Config) {
	return func(c *config.Config) {
		email := &c.Notification.Email
		email.Host, email.Port, email.CAFile = "127.0.0.1", server.Port, server.CAFile
		email.User, email.Password, email.From = mailtest.User, mailtest.Password, "shop@example.com"
		c.Consumer.ParkInterval, c.Consumer.ParkMaxInterval, c.Consumer.ParkAttempts = 10*time.Millisecond, time.Second, attempts
		c.Outbox.PollInterval = 20 * time.Millisecond
	}
}

func TestSendingIsRetriedWhileTheMailServerIsBusy(t *testing.T) {
	t.Parallel()

	server := mailtest.NewServer(t)
	server.Refuse(451, [3]int{4, 7, 1}, "greylisted")

	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

	s := apptest.Start(t, mailing(server, 1000))
	s.ExpectFailures()
	id := s.PublishMessage(event.Message{
		Topic: "user.created", Key: "user_1", Payload: []byte(guide(t, "user.created")),
		Headers: event.Headers{"ce_" + event.HeaderTraceParent: trace}, // the CloudEvents extension
	})
	pgtest.Eventually(t, "it has been retried repeatedly", func() bool {
		return apptest.Value[int](s, `SELECT coalesce(max(attempts), 0) FROM failed_messages
			WHERE consumer = 'notification.email' AND headers ->> 'traceparent' = $1`, trace) >= 3
	})
	server.Refuse(0, [3]int{}, "")

	pgtest.Eventually(t, "the e-mail is recorded", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE status = 'sent'`) == 1
	})
	s.WaitUntilIdle()

	if n := len(server.Received()); n != 1 {
		t.Errorf("%d e-mails arrived", n)
	}

	// Retries keep the message's identity and its place in the conversation.
	sent := s.Messages("notifications.email", 1)[0]
	if got := sent.Headers[event.HeaderTraceParent]; got != trace {
		t.Errorf("the notification has traceparent %q", got)
	}

	if n := apptest.Value[int](s, `SELECT count(*) FROM inbox WHERE consumer = 'notification.email' AND message_id = $1
		AND correlation_id = $2 AND causation_id = $3`, sent.ID, id, s.Messages("notifications", 1)[0].ID); n != 1 {
		t.Errorf("%d inbox rows of the message, expected 1", n)
	}
}

func TestSendingStopsIfTheMailServerStaysBusy(t *testing.T) {
	t.Parallel()

	server := mailtest.NewServer(t)
	server.Refuse(451, [3]int{4, 7, 1}, "greylisted")

	s := apptest.Start(t, mailing(server, 2))
	s.ExpectFailures()
	s.Publish("user.created", guide(t, "user.created"))
	pgtest.Eventually(t, "the notification is stopped", func() bool {
		entries, err := s.Failed.List(t.Context(), failed.Filter{Topic: "notifications.email"}, 1)

		return err == nil && len(entries) == 1 && strings.Contains(entries[0].Error, "gave up after 3 attempts") && strings.Contains(entries[0].Error, "greylisted")
	})
}

func TestSendingWaitsForAnUnavailableMailServer(t *testing.T) {
	t.Parallel()

	server := mailtest.NewServer(t)
	server.RefuseSender(421, [3]int{4, 3, 2}, "shutting down")

	s := apptest.Start(t, mailing(server, 1)) // a message may be parked only once
	s.ExpectFailures()
	s.Publish("user.created", guide(t, "user.created"))
	pgtest.Eventually(t, "there were more attempts than a message may fail", func() bool { return server.Logins() > 3 })

	// The other consumers continue, and the outage affects all replicas alike.
	reported(t, s, expected{"mail server", 200, health.Degraded, "unavailable: ", "check that it is running", ""})
	reported(t, s, expected{"notification.email", 200, health.Degraded, "waiting for mail server", "see the dependency", "mail server"})

	server.RefuseSender(0, [3]int{}, "")
	pgtest.Eventually(t, "the e-mail is recorded", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM notifications WHERE user_id = 'user_1' AND status = 'sent'`) == 1
	})

	if n := apptest.Value[int](s, `SELECT count(*) FROM failed_messages`); n != 0 || len(server.Received()) != 1 {
		t.Errorf("%d messages failed, and %d e-mails arrived", n, len(server.Received()))
	}
}
