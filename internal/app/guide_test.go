package app_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// Each test here is a row of the table in docs/guide.md. The messages are the
// guide's, as its Python code sends them.

func guide(t *testing.T, name string) string {
	t.Helper()

	data, err := os.ReadFile(filepath.Join("testdata", "guide", name+".json"))
	if err != nil {
		t.Fatal(err)
	}

	return string(data)
}

func history(t *testing.T, s *apptest.Service, id string) string {
	t.Helper()

	details, err := s.Users.Show(t.Context(), id)
	if err != nil {
		return err.Error()
	}

	var names []string
	for _, e := range details.History {
		names = append(names, e.Type)
	}

	return strings.Join(names, " ")
}

func TestGuideUserCreated(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Publish("user.created", guide(t, "user.created"))

	sent := s.Messages("notifications", 1)[0].Fields()
	if diff := cmp.Diff(map[string]any{"user_id": "user_1", "content": "Welcome Alice!"}, sent); diff != "" {
		t.Error(diff)
	}

	if got := history(t, s, "user_1"); got != "UserCreated" {
		t.Errorf("got %s", got)
	}

	s.Messages("notifications.email", 1)

	if got := apptest.Value[string](s, `SELECT channel || ' ' || status FROM notifications`); got != "email sent" {
		t.Errorf("the welcome was recorded as %s", got)
	}
}

func TestGuideUserUpdated(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Publish("user.created", guide(t, "user.created"))
	s.Messages("notifications", 1)
	s.Publish("user.updated", guide(t, "user.updated"))

	changed := s.Messages("user.profile.updated", 1)[0].Fields()
	want := map[string]any{"user_id": "user_1", "changes": map[string]any{"email": "alice@new.example.com", "city": "Berlin"}}

	if diff := cmp.Diff(want, changed); diff != "" {
		t.Error(diff)
	}

	told := s.Messages("notifications", 2)[1].Fields()["content"]
	if told != "Your profile was updated: city, email" {
		t.Errorf("got %s", told)
	}

	details, err := s.Users.Show(t.Context(), "user_1")
	if err != nil || details.Email != "alice@new.example.com" || string(details.Properties["city"]) != `"Berlin"` {
		t.Errorf("got %+v, %v", details, err)
	}
}

func TestGuideUserNotFound(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t, func(c *config.Config) { c.Consumer.AwaitTimeout = 100 * time.Millisecond })
	id := s.Publish("user.updated", guide(t, "user.updated"))
	pgtest.Eventually(t, "it has waited for the user long enough", func() bool {
		return apptest.Value[int](s, `SELECT count(*) FROM user_misses`) == 1
	})
	s.WaitUntilIdle()

	misses, err := s.Users.Misses(t.Context(), 10)
	if err != nil || len(misses) != 1 || misses[0].UserID != "user_1" || misses[0].MessageID != id {
		t.Errorf("got %+v, %v", misses, err)
	}

	if n := apptest.Value[int](s, `SELECT count(*) FROM failed_messages`); n != 0 {
		t.Errorf("%d messages failed: an unknown user is an outcome, not an error", n)
	}
}

func TestGuideLegacyPipeline(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Publish("user.events", guide(t, "user.events.create"))
	s.Messages("notifications", 1)
	s.Publish("user.events", guide(t, "user.events.update"))
	s.Messages("user.profile.updated", 1)

	if got := history(t, s, "user_2"); got != "UserCreated UserNameUpdated" {
		t.Errorf("got %s", got)
	}

	s.ExpectFailures()
	s.PublishMessage(event.Message{Topic: "user.events", Payload: []byte(guide(t, "user.events.unknown"))})
	pgtest.Eventually(t, "the unknown action is rejected", func() bool {
		entries, err := s.Failed.List(t.Context(), failed.Filter{Topic: "user.events"}, 1)

		return err == nil && len(entries) == 1 && entries[0].Error == `action: is "delete", expected create or update`
	})
}

func TestGuideNotification(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Publish("notifications", guide(t, "notifications"))
	s.Messages("notifications.log", 1)

	list, err := s.Notifications.List(t.Context(), "user_1", 10)
	if err != nil || len(list) != 1 || list[0].Channel != "log" || list[0].Status != "sent" || list[0].Answer != "logged" {
		t.Errorf("got %+v, %v", list, err)
	}
}

func TestGuideAnalytics(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	for range 3 { // three messages with different IDs
		s.Publish("analytics.track", guide(t, "analytics.track"))
	}

	s.Messages("analytics.track", 3)

	if n := apptest.Value[int](s, `SELECT count FROM analytics_daily WHERE day = '2026-01-31' AND event = 'page_view'`); n != 3 {
		t.Errorf("counted %d, expected 3", n)
	}

	if page := apptest.Value[string](s, `SELECT min(properties ->> 'page') FROM analytics_events WHERE user_id = 'user_1'`); page != "/home" {
		t.Errorf("stored page %s", page)
	}
}

func TestGuideOrder(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Seed()
	s.Publish("orders.created", guide(t, "orders.created"))

	requested := s.Messages("payments.requested", 1)
	if got := requested[0].Fields(); got["order_id"] != "order_123" || got["amount"] != 99.99 {
		t.Errorf("got %v", got)
	}

	s.Messages("orders.completed", 1)
	s.WaitForOrder("order_123", "completed")
}

func TestGuideEventStore(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Publish("user.created", guide(t, "user.created"))
	s.Messages("notifications", 1)
	s.Publish("user.updated", guide(t, "user.updated"))
	s.Messages("notifications", 2)

	// Versions are 1..n, as in the guide's append_event.
	if got := apptest.Value[string](s, `SELECT string_agg(version || ' ' || type, ', ' ORDER BY version) FROM events WHERE stream = 'user-user_1'`); got != "1 UserCreated, 2 UserEmailUpdated, 3 UserPropertiesUpdated" {
		t.Errorf("got %s", got)
	}

	pgtest.Eventually(t, "the table is up to date", func() bool {
		list, err := s.Users.List(t.Context(), 10)

		return err == nil && len(list) == 1 && list[0].Email != nil && *list[0].Email == "alice@new.example.com"
	})
}

// TestTheGuidePageNamesEachTest checks that docs/guide.md has a row for each test and
// names no others.
func TestTheGuidePageNamesEachTest(t *testing.T) {
	t.Parallel()

	page, err := os.ReadFile("../../docs/guide.md")
	if err != nil {
		t.Fatal(err)
	}

	var (
		source []byte
		tests  []string
	)

	for _, name := range []string{"guide_test.go", "guide_practice_test.go"} {
		part, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}

		source = append(source, part...)
	}

	for line := range strings.Lines(string(source)) {
		if name, ok := strings.CutPrefix(line, "func TestGuide"); ok {
			name, _, _ = strings.Cut(name, "(")
			tests = append(tests, "TestGuide"+name)
		}
	}

	for line := range strings.Lines(string(page)) {
		for field := range strings.FieldsFuncSeq(line, func(r rune) bool { return r == '`' || r == ' ' || r == '|' }) {
			if strings.HasPrefix(field, "TestGuide") && !slices.Contains(tests, field) {
				t.Errorf("docs/guide.md names %s, which does not exist", field)
			}
		}
	}

	for _, name := range tests {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/guide.md lacks a row for %s", name)
		}
	}
}
