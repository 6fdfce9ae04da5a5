package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func fields(pairs ...string) Properties {
	p := Properties{}
	for pair := range slices.Chunk(pairs, 2) {
		p[pair[0]] = json.RawMessage(pair[1])
	}

	return p
}

var alice = User{ID: "a", Version: 1, Name: "Alice", Email: "a@x.org", Properties: fields("city", `"Berlin"`, "tags", `[1, 2]`)}

func TestUpdateDecidesWhatHasChanged(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		update Update
		want   []eventstore.Data
	}{
		"nothing":         {Update{}, nil},
		"the same":        {Update{Name: new("Alice"), Email: new("a@x.org"), Properties: fields("city", ` "Berlin"`, "tags", `[1,2]`)}, nil},
		"an address":      {Update{Email: new("b@x.org")}, []eventstore.Data{EmailUpdated{UserID: "a", NewEmail: "b@x.org"}}},
		"a name":          {Update{Name: new("Al")}, []eventstore.Data{NameUpdated{UserID: "a", NewName: "Al"}}},
		"a property":      {Update{Properties: fields("city", `"Bonn"`)}, []eventstore.Data{PropertiesUpdated{UserID: "a", Changed: fields("city", `"Bonn"`)}}},
		"a new one":       {Update{Properties: fields("age", `7`)}, []eventstore.Data{PropertiesUpdated{UserID: "a", Changed: fields("age", `7`)}}},
		"one less":        {Update{Properties: fields("city", `null`)}, []eventstore.Data{PropertiesUpdated{UserID: "a", Changed: fields("city", `null`)}}},
		"one less than 0": {Update{Properties: fields("age", `null`)}, nil},
	} {
		if diff := cmp.Diff(c.want, alice.Update(c.update)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestCreateDecidesWhetherItIsTheSameUser(t *testing.T) {
	t.Parallel()

	profile := Profile{Name: "Alice", Email: "a@x.org", Properties: fields("city", `"Berlin"`, "tags", `[1,2]`)}

	if events, err := (User{ID: "a"}).Create(profile); err != nil || len(events) != 1 {
		t.Errorf("new: got %v, %v", events, err)
	}

	if events, err := alice.Create(profile); err != nil || len(events) != 0 {
		t.Errorf("again: got %v, %v", events, err)
	}

	profile.Email = "other@x.org"

	var rejection *event.RejectError
	if _, err := alice.Create(profile); !errors.As(err, &rejection) || rejection.Reason != event.ReasonConflict {
		t.Errorf("another: got %v", err)
	}

	if _, err := alice.Apply(Erased{}).Create(profile); !errors.As(err, &rejection) || rejection.Reason != event.ReasonRefused {
		t.Errorf("erased: got %v", err)
	}
}

func TestFoldingGivesTheState(t *testing.T) {
	t.Parallel()

	u := User{ID: "a"}
	for _, data := range []eventstore.Data{
		Created{UserID: "a", Name: "Alice", Email: "a@x.org", Properties: fields("city", `"Berlin"`)},
		EmailUpdated{UserID: "a", NewEmail: "b@x.org"},
		NameUpdated{UserID: "a", NewName: "Al"},
		PropertiesUpdated{UserID: "a", Changed: fields("city", `null`, "age", `7`)},
	} {
		u = u.Apply(data)
	}

	want := User{ID: "a", Version: 4, Name: "Al", Email: "b@x.org", Properties: fields("age", `7`)}
	if diff := cmp.Diff(want, u); diff != "" {
		t.Error(diff)
	}

	if diff := cmp.Diff(User{ID: "a", Version: 5, Erased: true}, u.Apply(Erased{})); diff != "" {
		t.Error(diff)
	}
}

func TestASealFitsOneUserAndOneType(t *testing.T) {
	t.Parallel()

	ring, err := newKeyring("a", newKey())
	if err != nil {
		t.Fatal(err)
	}

	box, err := ring.seal("UserCreated", map[string]string{"name": "Alice"})
	if err != nil {
		t.Fatal(err)
	}

	data, err := json.Marshal(box)
	if err != nil || strings.Contains(string(data), "Alice") {
		t.Fatalf("sealed as %s, %v", data, err)
	}

	if plain, err := ring.open("UserCreated", data); err != nil || string(plain) != `{"name":"Alice"}` {
		t.Errorf("opened %s, %v", plain, err)
	}

	if _, err := ring.open("UserNameUpdated", data); err == nil {
		t.Error("data sealed as one type opens as another")
	}

	other := ring
	other.id = "b"

	if _, err := other.open("UserCreated", data); err == nil {
		t.Error("data sealed for one user opens as another's")
	}
}

// put appends events to a user's stream, creating it if it is new.
func put(t *testing.T, s *Service, id string, events ...eventstore.Data) {
	t.Helper()

	err := postgres.InTx(t.Context(), s.pool, func(tx pgx.Tx) error {
		session, err := s.Open(t.Context(), tx, []string{id}, []string{id})
		if err != nil {
			return err
		}

		if err := session.Record(id, event.NewID(), events); err != nil {
			return err
		}

		return session.Save(t.Context())
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestALongStreamIsFoldedFromItsSnapshot(t *testing.T) {
	t.Parallel()

	s := NewService(DefaultConfig(), pgtest.New(t))
	put(t, s, "a", Created{UserID: "a", Name: "Alice", Email: "a@x.org"})

	for n := range snapshotEvery + 5 {
		put(t, s, "a", NameUpdated{UserID: "a", NewName: fmt.Sprint("Alice ", n)})
	}

	if got := pgtest.Value[int](t, s.pool, `SELECT version FROM snapshots WHERE stream = 'user-a'`); got != snapshotEvery {
		t.Fatalf("the snapshot is at %d", got)
	}

	// Without the events before the snapshot, the state is the same.
	before, err := s.Emails(t.Context(), s.pool, []string{"a"})
	if err != nil {
		t.Fatal(err)
	}

	if _, err := s.pool.Exec(t.Context(), `UPDATE events SET data = '{"sealed":"AAAA"}' WHERE version < $1`, snapshotEvery); err != nil {
		t.Fatal(err)
	}

	after, err := s.Emails(t.Context(), s.pool, []string{"a"})
	if err != nil || after["a"] != "a@x.org" || before["a"] != after["a"] {
		t.Errorf("got %v before and %v after, %v", before, after, err)
	}
}

func TestErasureLeavesNothingToRead(t *testing.T) {
	t.Parallel()

	s := NewService(DefaultConfig(), pgtest.New(t))
	put(t, s, "a", Created{UserID: "a", Name: "Alice Cooper", Email: "a@x.org", Properties: fields("city", `"Berlin"`)})
	put(t, s, "a", EmailUpdated{UserID: "a", NewEmail: "b@x.org"})

	projector := eventstore.NewProjector(s.pool, []eventstore.Projection{Projection()}, pgtest.Logger(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})

	go func() { defer close(done); projector.Run(ctx) }()

	t.Cleanup(func() { cancel(); <-done })
	pgtest.Eventually(t, "the projection catches up", func() bool {
		return pgtest.Value[int](t, s.pool, `SELECT count(*) FROM users WHERE email = 'b@x.org' AND version = 2`) == 1
	})

	erase := func(id string) error {
		return postgres.InTx(t.Context(), s.pool, func(tx pgx.Tx) error {
			_, err := s.Erase(t.Context(), tx, id, false)

			return err
		})
	}
	for range 2 { // the second time changes nothing
		if err := erase("a"); err != nil {
			t.Fatal(err)
		}
	}

	if err := erase("nobody"); event.KindOf(err) != event.NotFound {
		t.Errorf("erasing nobody: got %v", err)
	}

	details, err := s.Show(t.Context(), "a")
	if err != nil || !details.Erased || details.Version != 3 || details.Name != "" || len(details.History) != 3 {
		t.Errorf("got %+v, %v", details, err)
	}

	pgtest.Eventually(t, "the projection applies the erasure", func() bool {
		return pgtest.Value[int](t, s.pool, `SELECT count(*) FROM users WHERE erased AND version = 3`) == 1
	})

	if err := projector.Rebuild(t.Context(), "users", func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}

	for _, table := range []string{"events", "users", "snapshots", "user_keys"} {
		if n := pgtest.Value[int](t, s.pool, `SELECT count(*) FROM `+table+` AS x WHERE x::text ~ 'Alice|x\.org|Berlin'`); n != 0 {
			t.Errorf("%d rows of %s still contain personal data", n, table)
		}
	}

	if n := pgtest.Value[int](t, s.pool, `SELECT count(*) FROM user_keys WHERE key IS NULL`); n != 1 {
		t.Error("the key still exists")
	}
}
