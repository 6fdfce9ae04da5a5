package postgres_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func newPool(tb testing.TB) *pgxpool.Pool {
	tb.Helper()

	pool, release, err := postgres.NewPool(postgres.Config{URL: postgres.Secret(pgtest.URL(tb)), MaxConns: 4})
	if err != nil {
		tb.Fatal(err)
	}

	tb.Cleanup(release)

	return pool
}

func TestUUIDsRoundTrip(t *testing.T) {
	t.Parallel()

	pool := newPool(t)
	id := uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057")

	var missing *uuid.UUID

	for name, value := range map[string]any{"a value": id, "a pointer": &id, "a text": id.String(), "an array": [16]byte(id)} {
		var got uuid.UUID
		if err := pool.QueryRow(t.Context(), `SELECT $1::uuid`, value).Scan(&got); err != nil || got != id {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
	}

	var got *uuid.UUID
	if err := pool.QueryRow(t.Context(), `SELECT $1::uuid`, missing).Scan(&got); err != nil || got != nil {
		t.Errorf("nothing: got %s, %v", got, err)
	}

	var text string
	if err := pool.QueryRow(t.Context(), `SELECT $1::uuid[]::text || $2::uuid[]::text`,
		[]uuid.UUID{id, uuid.Nil}, []*uuid.UUID{nil, &id}).Scan(&text); err != nil ||
		text != "{"+id.String()+","+uuid.Nil.String()+"}{NULL,"+id.String()+"}" {
		t.Errorf("arrays: got %s, %v", text, err)
	}

	var ids []uuid.UUID
	if err := pool.QueryRow(t.Context(), `SELECT $1::uuid[]`, []uuid.UUID{id, uuid.Nil}).Scan(&ids); err != nil || !slices.Equal(ids, []uuid.UUID{id, uuid.Nil}) {
		t.Errorf("arrays: got %s, %v", ids, err)
	}

	var empty, null bool
	if err := pool.QueryRow(t.Context(), `SELECT cardinality($1::uuid[]) = 0, $2::uuid[] IS NULL`,
		[]uuid.UUID{}, []uuid.UUID(nil)).Scan(&empty, &null); err != nil || !empty || !null {
		t.Errorf("an empty array and none: got %t and %t, %v", empty, null, err)
	}

	if err := pool.QueryRow(t.Context(), `SELECT ($1::text[])::text`, []uuid.UUID{id}).Scan(&text); err != nil || text != "{"+id.String()+"}" {
		t.Errorf("as an array of text: got %s, %v", text, err)
	}

	// It is sent as text if the parameter is text.
	if err := pool.QueryRow(t.Context(), `SELECT $1::text`, id.String()).Scan(&text); err != nil || text != id.String() {
		t.Errorf("text: got %s, %v", text, err)
	}
}

func TestArraysOfTextRoundTrip(t *testing.T) {
	t.Parallel()

	type named []string

	pool := newPool(t)

	for name, c := range map[string]struct {
		value any
		want  []string
	}{
		"several": {[]string{"", "a", "grün", `{"NULL",}`}, []string{"", "a", "grün", `{"NULL",}`}},
		"one":     {[]string{"a"}, []string{"a"}},
		"none":    {[]string{}, []string{}},
		"nil":     {[]string(nil), nil},
		"a type":  {named{"a", "b"}, []string{"a", "b"}},
	} {
		var got []string
		if err := pool.QueryRow(t.Context(), `SELECT $1::text[]`, c.value).Scan(&got); err != nil || !slices.Equal(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}

	var text string
	if err := pool.QueryRow(t.Context(), `SELECT ($1::text[])::text || cardinality($2::text[])`, []*string{nil}, []string{}).Scan(&text); err != nil || text != "{NULL}0" {
		t.Errorf("NULL and empty: got %s, %v", text, err)
	}
}

func TestTimesAreInUTC(t *testing.T) {
	t.Parallel()

	var at time.Time
	if err := newPool(t).QueryRow(t.Context(), `SELECT '2026-07-01T12:00:00+05'::timestamptz`).Scan(&at); err != nil {
		t.Fatal(err)
	}

	if at.Location() != time.UTC || at.Format(time.RFC3339) != "2026-07-01T07:00:00Z" {
		t.Errorf("got %s", at)
	}
}

func BenchmarkIDs(b *testing.B) {
	pool := newPool(b)

	ids := make([]uuid.UUID, 256)
	for i := range ids {
		ids[i] = uuid.New()
	}

	for b.Loop() {
		if _, err := pool.Exec(b.Context(), `SELECT $1::uuid[] IS NULL`, ids); err != nil {
			b.Fatal(err)
		}
	}
}
