package apptest_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// The worked example of the README: loyalty points.

// Earned says that a customer earned points.
type Earned struct {
	CustomerID string `json:"customer_id"`
	Points     int    `json:"points"`
}

// Topic implements event.Payload.
func (Earned) Topic() string { return "loyalty.earned" }

// Key implements event.Payload.
func (e Earned) Key() string { return e.CustomerID }

// Validate implements event.Payload.
func (e Earned) Validate() error {
	var errs []error
	if e.CustomerID == "" {
		errs = append(errs, errors.New("customer_id: is missing"))
	}

	if e.Points < 1 {
		errs = append(errs, errors.New("points: expected 1 or more"))
	}

	return errors.Join(errs...)
}

// Award adds the points to the customer's account and tells the customer.
func Award(ctx context.Context, tx pgx.Tx, e event.Event[Earned]) ([]event.Outgoing, error) {
	var total int

	err := tx.QueryRow(ctx, `
		INSERT INTO loyalty (customer_id, points) VALUES ($1, $2)
		ON CONFLICT (customer_id) DO UPDATE SET points = loyalty.points + excluded.points
		RETURNING points`, e.Payload.CustomerID, e.Payload.Points).Scan(&total)
	if err != nil || total < 100 {
		return nil, err
	}

	return []event.Outgoing{e.Then(notification.Requested{
		UserID: e.Payload.CustomerID, Content: "You have 100 points!", Channel: notification.Log,
	})}, nil
}

func TestTheWorkedExample(t *testing.T) {
	t.Parallel()

	s := apptest.New(t, pgtest.URL(t))
	if _, err := s.Pool.Exec(t.Context(), `CREATE TABLE loyalty (customer_id text PRIMARY KEY, points int NOT NULL)`); err != nil {
		t.Fatal(err)
	}

	consumer.On(s.Router, "loyalty.award", Award, notification.Requested{})
	s.Run()

	s.Publish("loyalty.earned", `{"customer_id": "alice", "points": 60}`)
	s.Publish("loyalty.earned", `{"customer_id": "alice", "points": 50}`)

	told := s.Messages("notifications", 1)[0].Fields()
	if told["content"] != "You have 100 points!" {
		t.Errorf("got %v", told)
	}

	if _, err := s.Check("loyalty.earned", []byte(`{"points": -1}`)); err == nil || err.Error() != "customer_id: is missing; points: expected 1 or more" {
		t.Errorf("got %v", err)
	}
}

// Every piece of Go in the README's section is in this file, word for word.
func TestTheReadmeShowsTheWorkedExample(t *testing.T) {
	t.Parallel()

	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}

	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}

	_, section, _ := strings.Cut(string(readme), "\n## Adding a handler\n")
	section, _, _ = strings.Cut(section, "\n## ")

	have := lines(string(source))
	blocks := 0

	for block := range strings.SplitSeq(section, "```go\n") {
		code, _, isCode := strings.Cut(block, "```")
		if !isCode {
			continue
		}

		blocks++

		for _, line := range lines(code) {
			if !slices.Contains(have, line) {
				t.Errorf("README has a line that the example lacks: %s", line)
			}
		}
	}

	if blocks < 4 {
		t.Errorf("found %d pieces of Go in the README, expected at least 4", blocks)
	}
}

func lines(text string) []string {
	var list []string

	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}

	return list
}

// A test of a service needs three lines: start, publish, wait.
func ExampleStart() { //nolint:testableexamples // it is part of a test
	var t *testing.T // that of the test

	s := apptest.Start(t)
	s.Publish("user.created", `{"user": {"id": "alice", "name": "Alice", "email": "alice@example.com"}}`)
	welcome := s.Messages("notifications", 1)[0]

	if welcome.Fields()["content"] != "Welcome Alice!" {
		t.Errorf("got %s", welcome.Payload)
	}
}
