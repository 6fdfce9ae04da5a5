package app_test

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/telemetry"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// person lists the data of Ädelheid (id adel-1), none of which may be left.
var person = []string{"Ädelheid", "Quastenberg", "adel@home.example", "quast@work.example", "Wolkenheim", "5551234"}

// traces returns the strings of person that text contains, in plain text or hexadecimal.
func traces(text string) (found []string) {
	text = strings.ToLower(text)

	for _, word := range person {
		word = strings.ToLower(word)
		escaped := strings.ReplaceAll(word, "ä", `\u00e4`)

		for _, spelling := range []string{word, escaped, hex.EncodeToString([]byte(word)), hex.EncodeToString([]byte(escaped))} {
			if strings.Contains(text, spelling) {
				found = append(found, word)

				break
			}
		}
	}

	return found
}

// dump returns the rows of all tables in all schemas as text, by table.
func dump(s *apptest.Service) map[string][]string {
	rows := map[string][]string{}

	for _, table := range apptest.Value[[]string](s, `
		SELECT array_agg(c.oid::regclass::text) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')`) {
		rows[table] = apptest.Value[[]string](s, `SELECT coalesce(array_agg(x::text), '{}') FROM `+table+` AS x`)
	}

	return rows
}

// left counts the rows that still contain any of the person's data, by table.
func left(s *apptest.Service) map[string]int {
	counts := map[string]int{}

	for table, rows := range dump(s) {
		for _, row := range rows {
			if len(traces(row)) > 0 {
				counts[table]++
			}
		}
	}

	return counts
}

// payloads holds, for each topic whose messages may name a person, the topic's consumer
// and a message about adel-1.
var payloads = []struct{ topic, consumer, payload string }{
	{"user.created", "account.create", `{"user":{"id":"adel-1","name":"Ädelheid Quastenberg","email":"adel@home.example","city":"Wolkenheim","phone":"5551234"}}`},
	{"user.updated", "account.update", `{"user_id":"adel-1","updates":{"name":"Ädelheid Quastenberg","email":"quast@work.example","phone":"5551234"}}`},
	{"user.events", "account.legacy", `{"userId":"adel-1","userName":"\u00c4delheid Quastenberg","userEmail":"adel@home.example","action":"create"}`},
	{"user.events", "account.legacy", `{"user_id":"adel-1","action":"update","updates":{"email":"quast@work.example","city":"Wolkenheim"}}`},
	{"notifications", "notification.route", `{"user_id":"adel-1","content":"Hello Ädelheid Quastenberg of Wolkenheim"}`},
	{"analytics.track", "analytics.track", `{"event":"viewed","timestamp":"2026-11-01","user_id":"adel-1","properties":{"email":"adel@home.example"}}`},
	{"notifications.email", "notification.email", `{"user_id":"adel-1","content":"Hello Ädelheid Quastenberg"}`},
	{"notifications.webhook", "notification.webhook", `{"user_id":"adel-1","content":"Hello Ädelheid Quastenberg","at":"2026-11-01T00:00:00Z"}`},
	{"notifications.log", "notification.log", `{"user_id":"adel-1","content":"Hello Ädelheid Quastenberg"}`},
}

// operator does not name the person.
var operator = activity.Actor{Who: "op", Why: "ticket 4711"}

// fail stores each payload as failed messages in every state, with several keys.
func fail(t *testing.T, s *apptest.Service) {
	t.Helper()

	must := func(err error) {
		t.Helper()

		if err != nil {
			t.Fatal(err)
		}
	}
	entry := func(topic, consumer, key, payload string) failed.Entry {
		return failed.Entry{
			Topic: topic, Consumer: consumer, Key: key, Payload: []byte(payload), MessageID: event.NewID(), Origin: "test",
			Headers: event.Headers{"customer": "adel@home.example"}, Reason: event.ReasonInvalid, Error: "cannot greet Ädelheid Quastenberg",
		}
	}
	stop := func(e failed.Entry) int64 {
		t.Helper()
		must(s.Failed.Stop(t.Context(), e))

		return apptest.Value[int64](s, `SELECT id FROM failed_messages WHERE message_id = $1`, e.MessageID)
	}
	anything := func(string, []byte) (string, error) { return "adel-1", nil }
	why := activity.Actor{Who: "op", Why: "a colleague asked"}
	naming := activity.Actor{Who: "op", Why: "Ms Quastenberg (quast@work.example) asked"}

	for i, p := range payloads {
		for _, key := range []string{"adel-1", "adel@home.example", fmt.Sprint("other-", i)} {
			must(s.Failed.Park(t.Context(), entry(p.topic, p.consumer, key, p.payload), time.Hour)) // waiting
			must(s.Failed.Park(t.Context(), entry(p.topic, p.consumer, key, p.payload), time.Hour)) // blocked
			stop(entry(p.topic, p.consumer, key, p.payload))

			discarded := stop(entry(p.topic, p.consumer, key, p.payload))
			_, err := s.Failed.Discard(t.Context(), failed.Filter{IDs: []int64{discarded}}, why, failed.Pace{})
			must(err)
		}

		// Three messages are edited: one names the person only before its edit, one only
		// after it, and one only between two edits.
		other := entry(p.topic, p.consumer, "other", `{"nobody":1}`)
		before, after := stop(entry(p.topic, p.consumer, "other", p.payload)), stop(other)
		other.MessageID = event.NewID()
		other.Headers, other.Error = nil, "invalid"
		between := stop(other)

		for _, edit := range []struct {
			id      int64
			payload string
			by      activity.Actor
		}{{before, `{"nobody":1}`, naming}, {after, p.payload, why}, {between, p.payload, why}, {between, `{"nobody":2}`, why}} {
			_, err := s.Failed.Edit(t.Context(), edit.id, failed.Edit{Payload: []byte(edit.payload), NewKey: "adel-1"}, edit.by, anything)
			must(err)
		}
	}
}

// unreadable stores messages that name the person in places that decoding does not
// reach.
func unreadable(t *testing.T, s *apptest.Service) (ids []uuid.UUID) {
	t.Helper()

	for i, m := range []struct{ topic, payload string }{
		{"user.created", `{"user":{"id":"adel-1","name":"Ädelheid Quastenberg","email":"adel@ho`},
		{"user.created", `{"user":{"name":"Ädelheid Quastenberg"}}`},
		{"user.created", `{"user":{"email":"ADEL@HOME.example","city":"Wolkenheim"}}`},
		{"user.updated", `name=%C3%84delheid+Quastenberg`},
		{"user.updated", "\xff\n\\u00c4delheid Quastenberg"},
		{"notifications", `"\u00c4delheid Quastenberg"`},
		{"orders.created", `{"order":{"id":"o","customer":{"email":"quast@work.example"}}}`},
		{"analytics.track", `{"event":"x","properties":{"text":"Dear\n\u00c4delheid Quastenberg"}}`},
	} {
		ids = append(ids, s.PublishMessage(event.Message{Topic: m.topic, Key: fmt.Sprint("bad-", i), Payload: []byte(m.payload)}))
	}

	return ids
}

// A person's data arrives on every topic and ends up in every kind of failed message.
// Then the person is erased.
func TestNothingOfAnErasedPersonIsLeft(t *testing.T) {
	t.Parallel()

	// The mail server is busy, and repeats the address it was sent.
	server := mailtest.NewServer(t)
	server.Refuse(451, [3]int{4, 7, 1}, "no mail for adel@home.example now")

	log := &pgtest.Log{}
	s := apptest.NewWithLog(t, pgtest.URL(t), telemetry.NewLogger(telemetry.Config{Level: "debug", Format: "text"}, log),
		mailing(server, 1000), func(c *config.Config) { c.Consumer.ParkInterval, c.Consumer.ParkMaxInterval = time.Hour, time.Hour })
	s.ExpectFailures()
	s.Run()
	s.Seed()

	first := applyMessages(t, s)
	stopConflict(t, s, first)
	fail(t, s)
	bad := unreadable(t, s)
	scheduleFor(t, s, "adel-1", "Goodbye Ädelheid Quastenberg")
	nameInFreeText(t, s)

	pgtest.Eventually(t, "all messages have been processed", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE message_id = ANY($1) AND state = 'stopped'`, bad) == len(bad) &&
			apptest.Value[int](s, `SELECT count(*) FROM outbox WHERE available_at IS NULL`) == 0
	})

	done := erase(t, s)
	allThatIsLeftIsMentioned(t, s, done.Mentions)
	eraseMentioned(t, s, done.Mentions)
	onlyTheHistoryOfTheOrderIsLeft(t, s)
	answers(t, s)

	if n := apptest.Value[int](s, `SELECT count(*) FROM operator_actions WHERE action = 'erased' AND who = 'op' AND why = 'ticket 4711' AND subject = 'adel-1'`); n != 2 {
		t.Errorf("%d erasures are recorded", n)
	}

	for line := range strings.Lines(log.String()) {
		if found := traces(line); len(found) > 0 {
			t.Errorf("the log contains %v: %s", found, line)
		}
	}

	lateMessagesAreRefusedAndErased(t, s)
}

// applyMessages publishes messages that are applied, and waits for their consequences. It
// returns the id of the message that created the person.
func applyMessages(t *testing.T, s *apptest.Service) (first uuid.UUID) {
	t.Helper()

	first = s.Publish("user.created", payloads[0].payload)
	s.Publish("user.updated", payloads[1].payload)
	s.Publish("user.events", payloads[3].payload)
	s.Publish("notifications", `{"user_id":"adel-1","content":"Hello Ädelheid Quastenberg","channel":"log"}`)
	s.Publish("analytics.track", payloads[5].payload)
	s.Publish("orders.created", `{"order":{"id":"o1","product_id":"product_1","quantity":1,"total_amount":1},"customer":"Ädelheid Quastenberg"}`)
	s.WaitForOrder("o1", "completed")
	pgtest.Eventually(t, "the user is in the projection", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM users`) == 1 })

	return first
}

// stopConflict publishes another payload under the id of a message that has been applied.
// The new message is stopped, requeued with a new id, and stopped again.
func stopConflict(t *testing.T, s *apptest.Service, applied uuid.UUID) {
	t.Helper()

	s.PublishMessage(event.Message{ID: applied, Topic: "user.created", Key: "adel-1", Payload: []byte(strings.Replace(payloads[0].payload, "5551234", "5551234-1", 1))})
	pgtest.Eventually(t, "the conflict is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE reason = 'conflict' AND state = 'stopped'`) == 1
	})

	if _, err := s.Failed.Requeue(t.Context(), failed.Filter{MessageID: applied}, activity.Actor{Who: "op"}, failed.Pace{OutOfOrder: true}, s.Router.Check); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the requeued message is stopped again", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM operator_actions WHERE action = 'reopened'`) == 1
	})
}

// nameInFreeText names the person wherever operators can write free text, and in an
// order's history.
func nameInFreeText(t *testing.T, s *apptest.Service) {
	t.Helper()

	for _, sql := range []string{
		`INSERT INTO operator_actions (action, subject, who, why) VALUES ('retried', 'account.create quast@work.example', 'op', 'adel-1 called')`,
		`INSERT INTO paused_consumers (consumer, who, why) VALUES ('inventory.restock', 'op', 'for Ms QUASTENBERG, ädelheid quastenberg')`,
		`INSERT INTO events (stream, version, type, data, message_id) VALUES ('order-o1', 5, 'Noted', '{"text": "Ädelheid Quastenberg"}', gen_random_uuid())`,
	} {
		if _, err := s.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

// erase rehearses the erasure of adel-1, and erases what the rehearsal announced.
func erase(t *testing.T, s *apptest.Service) consumer.Erasure {
	t.Helper()

	announced := rehearse(t, s)

	done, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "adel-1", By: operator})
	if err != nil {
		t.Fatal(err)
	}

	announced.DryRun = false
	if diff := cmp.Diff(announced, done, cmpopts.IgnoreUnexported(consumer.Erasure{}, postgres.Found{})); diff != "" {
		t.Errorf("the erasure differs from the dry run: %s", diff)
	}

	// For each payload, with each of 3 keys, two messages wait, one is stopped and one
	// was discarded; two more were edited. One message is scheduled. Messages that the
	// service itself parked also count.
	if n := int64(len(payloads)); done.Withdrawn <= n*3*2 || done.Emptied < n*(3*2+2) || done.Actions < 3*n ||
		done.Rows["users"] != 1 || done.Rows["notifications"] < 1 || done.Rows["analytics"] != 1 {
		t.Errorf("got %+v", done)
	}

	return done
}

// rehearse returns what an erasure of adel-1 would do. It checks that nothing changed.
func rehearse(t *testing.T, s *apptest.Service) consumer.Erasure {
	t.Helper()

	before := dump(s)

	would, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "adel-1", DryRun: true})
	if err != nil || !would.DryRun {
		t.Fatalf("dry run: %+v, %v", would, err)
	}

	// The running service keeps updating the times in these tables.
	running := []string{"projections", "expiry_cursor"}

	for table, rows := range dump(s) {
		if !slices.Contains(running, table) && fmt.Sprint(rows) != fmt.Sprint(before[table]) {
			t.Errorf("the dry run changed %s", table)
		}
	}

	return would
}

func allThatIsLeftIsMentioned(t *testing.T, s *apptest.Service, mentions []postgres.Found) {
	t.Helper()

	mentioned := map[string]int{}
	for _, m := range mentions {
		mentioned[m.Table]++
	}

	for table, n := range left(s) {
		if mentioned[table] < n {
			t.Errorf("%d rows of %s are left, of which %d are mentioned", n, table, mentioned[table])
		}
	}

	// The first unreadable message is not mentioned, because its id could be read.
	if mentioned["failed_messages"] != 7 || mentioned["operator_actions"] != 1+len(payloads) || mentioned["paused_consumers"] != 1 || mentioned["events"] != 1 {
		t.Errorf("mentioned %v", mentioned)
	}
}

// eraseMentioned changes the reason for the pause, and erases the failed messages and
// actions that mention adel-1.
func eraseMentioned(t *testing.T, s *apptest.Service, mentions []postgres.Found) {
	t.Helper()

	if _, err := s.Pool.Exec(t.Context(), `UPDATE paused_consumers SET why = 'a check'`); err != nil {
		t.Fatal(err)
	}

	pgtest.Eventually(t, "the service has read the reason for the pause", func() bool {
		return slices.ContainsFunc(s.Router.States(), func(c consumer.State) bool { return c.Pause != nil && c.Pause.Why == "a check" })
	})

	also := consumer.Erasing{Subject: "adel-1", By: operator}

	for _, m := range mentions {
		var id int64
		_, _ = fmt.Sscan(m.Row, &id)

		switch m.Table {
		case "failed_messages":
			also.Failed = append(also.Failed, id)
		case "operator_actions":
			also.Actions = append(also.Actions, id)
		}
	}

	if _, err := s.Router.Erase(t.Context(), also); err != nil {
		t.Fatal(err)
	}
}

// The history of an order cannot be changed.
func onlyTheHistoryOfTheOrderIsLeft(t *testing.T, s *apptest.Service) {
	t.Helper()

	if got := left(s); len(got) != 1 || got["events"] != 1 {
		t.Errorf("left %v", got)
	}
}

// lateMessagesAreRefusedAndErased publishes a message about adel-1 after the erasure.
func lateMessagesAreRefusedAndErased(t *testing.T, s *apptest.Service) {
	t.Helper()

	s.Publish("user.created", payloads[0].payload)
	pgtest.Eventually(t, "the late message is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE reason = 'refused'`) == 1
	})

	if done, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "adel-1", By: operator}); err != nil || done.Emptied != 1 {
		t.Errorf("again: got %+v, %v", done, err)
	}

	onlyTheHistoryOfTheOrderIsLeft(t, s)
}

// answers checks what the API says about the person.
func answers(t *testing.T, s *apptest.Service) {
	t.Helper()

	paths := []string{"/failed?limit=100&state=all", "/failed/groups?limit=100", "/waiting", "/activity?limit=100", "/notifications", "/consumers"}
	for _, id := range apptest.Value[[]int64](s, `SELECT array_agg(id) FROM failed_messages`) {
		for _, part := range []string{"", "/actions", "/payload", "/diff"} {
			paths = append(paths, fmt.Sprintf("/failed/%d%s", id, part))
		}
	}

	for _, path := range paths {
		_, body := page(t, s, "/api/v1"+path)

		if found := traces(body); len(found) > 0 {
			t.Errorf("%s says %v: %.500s", path, found, body)
		}
	}
}

// scheduleFor schedules a notification for later.
func scheduleFor(t *testing.T, s *apptest.Service, user, content string) {
	t.Helper()

	err := postgres.InTx(t.Context(), s.Pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `
			INSERT INTO outbox (shard, topic, key, message_id, correlation_id, payload, available_at)
			VALUES (0, $1, $2, $3, $3, $4, now() + interval '1 hour')`,
			notification.Topic, user, event.NewID(), fmt.Appendf(nil, `{"user_id":%q,"content":%q}`, user, content))

		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A person who exists only in failed messages is erased, and later messages about them
// are refused.
func TestAPersonWhoExistsOnlyInFailedMessagesIsErased(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.ExpectFailures()

	if _, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "adel-1", By: operator}); event.KindOf(err) != event.NotFound {
		t.Errorf("nobody: got %v", err)
	}

	s.PublishMessage(event.Message{Topic: "user.created", Key: "adel-1", Payload: []byte(`{"user":{"id":"adel-1","name":"Ädelheid Quastenberg","email":"none"}}`)})
	pgtest.Eventually(t, "the message is stopped", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages`) == 1
	})

	done, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "adel-1", By: operator})
	if err != nil || done.Emptied != 1 || done.Rows["users"] != 1 {
		t.Errorf("got %+v, %v", done, err)
	}

	if got := left(s); len(got) > 0 {
		t.Errorf("left %v", got)
	}

	s.Publish("user.created", payloads[0].payload)
	pgtest.Eventually(t, "a later message is refused", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM failed_messages WHERE reason = 'refused' AND error LIKE '%was erased%'`) == 1
	})

	if details, err := s.Users.Show(t.Context(), "adel-1"); err != nil || !details.Erased || details.Version != 1 {
		t.Errorf("got %+v, %v", details, err)
	}
}

func TestAnErasureNeedsAReasonThatMayBeKept(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Publish("user.created", payloads[0].payload)
	pgtest.Eventually(t, "the user exists", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM users`) == 1 })

	for why, want := range map[string]string{
		"": "why: is missing", " ": "why: is missing",
		"mail of ADEL@home.example, 1 May": "why: contains the person's name or address",
		"as ädelheid quastenberg asked":    "why: contains the person's name or address",
	} {
		_, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "adel-1", By: activity.Actor{Who: "op", Why: why}})
		if event.KindOf(err) != event.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", why, err)
		}
	}

	if _, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "adel-1", Failed: []int64{99}, By: operator}); event.KindOf(err) != event.NotFound {
		t.Errorf("a message that does not exist: got %v", err)
	}

	if _, err := s.Router.Erase(t.Context(), consumer.Erasing{Subject: "adel-1", Actions: []int64{99}, By: operator}); event.KindOf(err) != event.NotFound {
		t.Errorf("an action that does not exist: got %v", err)
	}

	if details, err := s.Users.Show(t.Context(), "adel-1"); err != nil || details.Erased {
		t.Errorf("the user was erased: %v", err)
	}

	if n := apptest.Value[int](s, `SELECT count(*) FROM operator_actions`); n != 0 {
		t.Errorf("%d actions are recorded", n)
	}

	if !slices.Equal(traces("Hex "+hex.EncodeToString([]byte("wolkenheim"))), []string{"wolkenheim"}) {
		t.Error("the scan finds nothing")
	}
}
