package order_test

import (
	"errors"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestOrdersAreLookedUpByKey(t *testing.T) {
	t.Parallel()

	store := order.NewService(nil)

	pgtest.LooksUpByKey(t, []string{"orders"},
		func(t *testing.T, tx pgx.Tx, from, to int) {
			t.Helper()

			for _, sql := range []string{
				`INSERT INTO orders (id, status, version, total_amount, currency, lines)
				 SELECT n, 'inventory_reserved', 1, 1, 'USD', '[{"product_id": "p", "quantity": 1}]' FROM generate_series($1::int, $2::int) AS n`,
				`INSERT INTO events (stream, version, type, data, message_id)
				 SELECT 'order-' || n, 1, 'OrderCreated', '{}', gen_random_uuid() FROM generate_series($1::int, $2::int) AS n`,
			} {
				if _, err := tx.Exec(t.Context(), sql, from, to); err != nil {
					t.Fatal(err)
				}
			}
		},
		func(t *testing.T, tx pgx.Tx) {
			t.Helper()

			ids := []string{"none"}
			for n := range 50 {
				ids = append(ids, strconv.Itoa(n+1))
			}

			if found, err := store.Find(t.Context(), tx, ids); err != nil || len(found) != 50 {
				t.Fatalf("%v, %v", found, err)
			}

			orders, err := store.Lock(t.Context(), tx, ids)
			if err != nil || len(orders) != 50 {
				t.Fatalf("%v, %v", orders, err)
			}

			var changes []order.Change

			for _, o := range orders {
				o.Version++
				changes = append(changes, order.Change{Order: o, Events: []eventstore.Data{order.Completed{}}, MessageID: event.NewID()})
			}

			writes := &pgx.Batch{}
			if err := errors.Join(store.Update(writes, changes), tx.SendBatch(t.Context(), writes).Close()); err != nil {
				t.Fatal(err)
			}
		})
}
