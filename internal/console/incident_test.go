package console_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// award is points that the members of a household share.
type award struct {
	Household string `json:"household"`
	Points    int    `json:"points"`
	Members   int    `json:"members"`
}

func (award) Topic() string     { return "loyalty.awarded" }
func (a award) Key() string     { return a.Household }
func (a award) Validate() error { return event.CheckID("household", a.Household) }

type handler = func(context.Context, pgx.Tx, event.Event[award]) ([]event.Outgoing, error)

// share is what release 1.4.0 does: it panics if a household has no members.
func share(_ context.Context, _ pgx.Tx, e event.Event[award]) ([]event.Outgoing, error) {
	if each := e.Payload.Points / e.Payload.Members; each < 0 {
		return nil, fmt.Errorf("%d points each", each)
	}

	return nil, nil
}

// shareFixed is what release 1.4.1 does.
func shareFixed(ctx context.Context, tx pgx.Tx, e event.Event[award]) ([]event.Outgoing, error) {
	e.Payload.Members = max(e.Payload.Members, 1)

	return share(ctx, tx, e)
}

// deploy replaces the service on a database, which sends e-mails through a server.
func deploy(t *testing.T, url, addr, release string, mail *mailtest.Server, fn handler) *browser {
	t.Helper()

	s := apptest.New(t, url, func(c *config.Config) {
		email := &c.Notification.Email
		email.Host, email.Port, email.CAFile = "127.0.0.1", mail.Port, mail.CAFile
		email.User, email.Password, email.From = mailtest.User, mailtest.Password, "shop@example.com"
		c.HTTP.Addr, c.Failed.Release, c.Outbox.Release = addr, release, release
		c.Consumer.PerTopic = []consumer.TopicConfig{{
			Topic: award{}.Topic(), ParkInterval: new(10 * time.Millisecond), ParkMaxInterval: new(20 * time.Millisecond), ParkAttempts: new(2),
		}}
	})
	s.ExpectFailures()
	consumer.On(s.Router, "loyalty.share", fn)
	s.Run()

	return newBrowser(t, s)
}

// Three things are wrong at once: the mail server is away, a release has a bug that stops
// messages, and the updates of a user wait for her creation, which is stopped. Whoever
// looks for the first time finds out with the console alone what is wrong with each, and
// resolves it.
func TestBrowserIncident(t *testing.T) {
	t.Parallel()

	mail := mailtest.NewServer(t)
	mail.Leave()

	url := pgtest.URL(t)
	b := deploy(t, url, "127.0.0.1:0", "1.4.0", mail, share)
	addr := b.HTTPAddr()

	b.Publish("user.created", `{"user":{"id":"bob","name":"Bob","email":"bob@home.example"}}`)

	for n := range 4 { // the second of each household has no members
		b.Publish("loyalty.awarded", fmt.Sprintf(`{"household":"house_%d","points":100,"members":2}`, n))
		b.Publish("loyalty.awarded", fmt.Sprintf(`{"household":"house_%d","points":100,"members":0}`, n))
	}

	b.publishUnchecked("user.created", "alice", `{"user":{"id":"alice","name":"Alice Liddell","email":"alice at home.example"}}`)
	b.Publish("user.updated", `{"user_id":"alice","updates":{"name":"Alice Hargreaves"}}`)
	b.Publish("user.updated", `{"user_id":"alice","updates":{"tier":"gold"}}`)
	pgtest.Eventually(t, "all have failed", func() bool {
		return apptest.Value[string](b.Service, `SELECT string_agg(n || ' ' || state, ', ' ORDER BY state) FROM (SELECT state, count(*) AS n FROM failed_messages WHERE state <> 'resolved' GROUP BY state) AS s`) == "5 stopped, 2 waiting"
	})
	// A later message of a household is applied, after one has stopped.
	b.Publish("loyalty.awarded", `{"household":"house_0","points":50,"members":2}`)
	pgtest.Eventually(t, "a message is overtaken", func() bool {
		return apptest.Value[int](b.Service, `SELECT count(*) FROM overtaking_messages`) == 1
	})

	tab := b.tab()
	step := 0
	see := func(texts ...string) {
		t.Helper()
		tab.See(texts...)

		step++
		picture(t, filepath.Join(".local", "console"), fmt.Sprintf("incident-%02d.png", step), tab.Picture())
	}

	// What is wrong, and where to go.
	tab.Open("/")
	see("something needs attention", "Consumer notification.email: waiting for mail server", "Dependency mail server: unavailable", "connection refused",
		"the service then recovers on its own", "Stopped messages: 5 messages are stopped and need a decision")

	// The bug: it would only panic again, until a release with a fix runs.
	tab.Press("see why, then edit, replay or discard them")
	see("5 messages in 2 groups", "handler panicked: runtime error: integer divide by zero in console_test.share", "user.email: is not an e-mail address")
	tab.Press("gave up after ? attempts: handler panicked")
	see("4 messages in 1 group", "it panicked in release 1.4.0, which is still running, and would panic again. Deploy a release with a fix")
	b.Stop()
	tab.See("Connection lost, retrying")
	b = deploy(t, url, addr, "1.4.1", mail, shareFixed)
	see("it panicked in release 1.4.0. Release 1.4.1 is running now. If that has the fix, replay what failed.")

	tab.Press("Replay in order")
	see("3 messages would be requeued, 1 left as they are", "a later message with key house_0 was applied", "1 message stays stopped, unless you allow it above")

	// The page before has logged each time that it did not reach the service.
	if errs := tab.Errors(); len(errs) == 0 {
		t.Error("the page has not noticed that the service was away")
	}

	tab.Press("Replay")
	see("All 3 messages have been tried", "1 message was left as they are", "Live")
	tab.Press("See why, and decide")
	tab.Tick("Even if later messages of the key were applied")
	tab.Fill("Reason", "points can be added in any order")
	tab.Press("Replay")
	see("All 1 message has been tried", "All messages have been requeued")

	// The key: its messages wait for one that is stopped, which has a mistake.
	tab.Press("Waiting keys")
	see("1 waiting key, the next due first", "awaits a message on user.created or user.events")
	tab.Press("alice")
	see("Waits for a decision: message 1 of user.created has the same key, and is stopped: user.email: is not an e-mail address", "2 messages wait, in this order",
		"Before the message that it awaits is applied, this changes nothing.")
	tab.Press("message 1")
	see("The consumer rejects the payload, and would reject it again. Edit it and requeue it", "2 messages of account.update with the same key wait for this one.")
	tab.Fill("Payload", `{"user":{"id":"alice","name":"Alice Liddell","email":"alice@home.example"}}`)
	tab.See("The consumer would accept this.")
	tab.Press("Store the edit")
	see("Nothing is applied yet: requeue the message to apply it.")
	tab.Press("Go on to requeue message 1")
	tab.See("It has the payload of the edit.")
	tab.Press("Requeue")
	see("All 1 message has been tried.")

	// The mail server: nothing is to be done here once it is back.
	tab.Press("Now")
	see("Dependency mail server: unavailable", "check that it is running")
	mail.Return(t)
	see("Everything works.")

	b.WaitUntilIdle()

	for _, to := range []string{"bob@home.example", "alice@home.example"} {
		if !strings.Contains(strings.Join(mail.Received(), "\n"), "To: <"+to+">") {
			t.Errorf("%s has got no e-mail", to)
		}
	}

	if left := apptest.Value[int](b.Service, `SELECT count(*) FROM failed_messages WHERE resolution IS DISTINCT FROM 'applied'`); left != 0 {
		t.Errorf("%d messages were not applied", left)
	}

	tab.Open("/console/users/alice")
	tab.See("Alice Hargreaves", "gold")

	// The second service ends before the tab, whose errors are then read: leave the live page.
	tab.Open("/console/docs/asyncapi")
}
