package account

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/user"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// TestABatchMayHaveSeveralMessagesOfAUser: each decision builds on the results of the
// messages before it.
func TestABatchMayHaveSeveralMessagesOfAUser(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	users := user.NewService(user.DefaultConfig(), pool)

	var batch []event.Event[LegacyEvent]

	for _, text := range []string{
		`{"userId":"a","userName":"Ann","email":"a@x.org","action":"create"}`,
		`{"userId":"b","userName":"Bob","email":"b@x.org","action":"create"}`,
		`{"userId":"a","userName":"Anna","action":"update"}`,
		`{"userId":"a","userName":"Anna","action":"update"}`, // changes nothing
		`{"userId":"a","email":"anna@x.org","city":"Berlin","action":"update"}`,
	} {
		payload, err := event.Decode[LegacyEvent]([]byte(text))
		if err != nil {
			t.Fatal(err)
		}

		batch = append(batch, event.Event[LegacyEvent]{Meta: event.Meta{ID: event.NewID()}, Payload: payload})
	}

	var outgoing []event.Outgoing

	err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) (err error) {
		outgoing, err = New(users).Legacy(t.Context(), tx, batch)

		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	details, err := users.Show(t.Context(), "a")
	if err != nil || details.Version != 4 || details.Name != "Anna" || details.Email != "anna@x.org" || string(details.Properties["city"]) != `"Berlin"` {
		t.Errorf("got %+v, %v", details.User, err)
	}

	var told []string

	for _, o := range outgoing {
		if n, is := o.Payload.(notification.Requested); is {
			told = append(told, fmt.Sprintf("%s: %s", n.UserID, n.Content))
		}
	}

	want := []string{
		"a: Welcome Ann!", "b: Welcome Bob!", "a: Your profile was updated: name", "a: Your profile was updated: city, email",
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}

	projected(t, pool)
}

// projected checks that the projection applies several events of a user at once.
func projected(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()

	events, _, err := eventstore.ReadAll(t.Context(), pool, user.Projection().Streams, 0, 1<<40, 100)
	if err != nil {
		t.Fatal(err)
	}

	err = postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error { return user.Projection().Apply(t.Context(), tx, events) })
	if err != nil {
		t.Fatal(err)
	}

	got := pgtest.Value[string](t, pool, `SELECT string_agg(id || version || name || email, ' ' ORDER BY id) FROM users`)
	if want := "a4Annaanna@x.org b1Bobb@x.org"; got != want {
		t.Errorf("projected %s, expected %s", got, want)
	}
}
