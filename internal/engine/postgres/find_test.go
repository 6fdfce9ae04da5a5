package postgres_test

import (
	"fmt"
	"testing"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestATextIsFoundInEverySpelling(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	exec(t, pool, `CREATE TABLE notes (id bigint PRIMARY KEY, text text, data jsonb, bytes bytea, list text[], n int)`)

	search := postgres.Search{Texts: []string{"Zoë Lee", "zoe+x@home.example"}, ID: "zoe-1", Limit: 10}

	// Each text is looked for in every column that can hold it.
	for text, want := range map[string]bool{
		"Zoë Lee":                               true,
		"to ZOë LEE, urgently":                  true,
		`{"name":"Zo\u00eb Lee"}`:               true,
		`{"name":"ZO\u00EB LEE"}`:               true,
		`{"text":"Dear\nZoë Lee"}`:              true,
		`{"text":"\u201cZoë Lee\u201d"}`:        true,
		"“Zoë Lee”":                             true,
		"name=Zo%C3%AB+Lee&x":                   true,
		"name=Zo%c3%ab%20Lee":                   true,
		"<Zoe+X@Home.example>":                  true,
		"mailto:zoe%2Bx%40home.example":         true,
		"account.create zoe-1":                  true,
		"Zoë Leeds":                             false,
		"Zoe Lee":                               false, // misspelled
		"Wm/DqyBMZWU=":                          false, // in base64
		"MarzoZoë Lee":                          false,
		"zoe-12":                                false,
		"zoe_1":                                 false,
		"zoexx@home.example":                    false,
		`{"order":{"id":"x","product_id":"p"}}`: false,
	} {
		for _, column := range []string{"text", "data", "bytes", "list"} {
			cast := map[string]string{"text": "$1", "data": "to_jsonb($1::text)", "bytes": "convert_to($1, 'UTF8')", "list": "ARRAY['x', $1]"}[column]

			if _, err := pool.Exec(t.Context(), `TRUNCATE notes`); err != nil {
				t.Fatal(err)
			}

			if _, err := pool.Exec(t.Context(), `INSERT INTO notes (id, `+column+`) VALUES (7, `+cast+`)`, text); err != nil {
				t.Fatal(err)
			}

			found, err := postgres.Find(t.Context(), pool, search)

			switch {
			case err != nil:
				t.Fatal(err)
			case !want && len(found.Rows) > 0 || want && (len(found.Rows) != 1 || found.Rows[0].Table != "notes" || found.Rows[0].Row != "7" || fmt.Sprint(found.Rows[0].Columns) != "["+column+"]"):
				t.Errorf("%s in %s: found %+v", text, column, found)
			}
		}
	}
}

func TestAnIDIsNotFoundWhereItBelongs(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	for _, sql := range []string{
		`INSERT INTO user_keys (user_id, erased_at) VALUES ('zoe-1', now())`,
		`INSERT INTO operator_actions (action, subject, who, why) VALUES ('erased', 'zoe-1', 'zoe-1', 'ticket')`,
		`INSERT INTO events (stream, version, type, data, message_id) VALUES ('user-zoe-1', 1, 'UserErased', '{}', gen_random_uuid())`,
		`INSERT INTO analytics_events (day, message_id, event, occurred_at, properties) VALUES ('2001-01-01', '01a20d99-da82-78bd-aff6-b8d9052f7c63', 'x', now(), '{"by": "zoe-1"}')`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	// A text that equals the ID is not looked for in columns that hold ids either.
	found, err := postgres.Find(t.Context(), pool, postgres.Search{Texts: []string{"Zoe-1"}, ID: "zoe-1", Limit: 10})
	if err != nil || len(found.Rows) != 1 || found.Rows[0].Table != "analytics_events" || found.Rows[0].Row != "01a20d99-da82-78bd-aff6-b8d9052f7c63" {
		t.Errorf("found %+v, %v", found, err)
	}

	// A search within earlier findings returns only rows that still match.
	within := postgres.Search{ID: "zoe-1", Limit: 10, Within: found.Rows}
	if found, err = postgres.Find(t.Context(), pool, within); err != nil || len(found.Rows) != 1 {
		t.Errorf("within: found %+v, %v", found, err)
	}

	within.Within = []postgres.Found{}
	if found, err = postgres.Find(t.Context(), pool, within); err != nil || len(found.Rows) != 0 {
		t.Errorf("within nothing: found %+v, %v", found, err)
	}

	if found, err = postgres.Find(t.Context(), pool, postgres.Search{Limit: 10}); err != nil || len(found.Rows) != 0 {
		t.Errorf("nothing: found %+v, %v", found, err)
	}
}

// Other programs may keep tables in the same database, and people make copies.
func TestTablesThatTheRoleMayNotReadAreNamed(t *testing.T) {
	t.Parallel()

	const create = `CREATE SCHEMA other; CREATE TABLE %[1]s (message_id int, note text); INSERT INTO %[1]s VALUES (1, 'zoe-1'); `

	for name, c := range map[string]struct{ table, grants, found, skipped string }{
		"a copy that the role may read":    {"copies", `GRANT SELECT ON copies TO pg_monitor`, "[copies]", "[]"},
		"a copy that the role cannot read": {"copies", ``, "[]", "[copies]"},
		"another program's table":          {"other.notes", `GRANT USAGE ON SCHEMA other TO pg_monitor; GRANT SELECT ON other.notes TO pg_monitor`, "[]", "[]"},
		"another program's closed schema":  {"other.notes", ``, "[]", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			address := pgtest.URL(t)
			owner := open(t, address)

			for _, sql := range []string{`GRANT SELECT ON ALL TABLES IN SCHEMA public TO pg_monitor`, fmt.Sprintf(create, c.table) + c.grants} {
				exec(t, owner, sql)
			}

			pool := open(t, with(t, address, "role", "pg_monitor"))
			found, err := postgres.Find(t.Context(), pool, postgres.Search{Texts: []string{"zoe-1"}, Limit: 10})
			tables := postgres.Column(found.Rows, func(f postgres.Found) string { return f.Table })

			if err != nil || fmt.Sprint(tables) != c.found || fmt.Sprint(found.Skipped) != c.skipped {
				t.Errorf("found %v, skipped %v, %v; expected %s and %s", tables, found.Skipped, err, c.found, c.skipped)
			}
		})
	}
}
