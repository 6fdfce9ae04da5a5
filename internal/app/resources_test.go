package app_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/test/apptest"
)

// ask sends a GET request to the API.
func ask(t *testing.T, s *apptest.Service, path string) (status int, body, next string) {
	t.Helper()

	status, body = page(t, s, "/api/v1"+path)

	var list struct {
		Next string `json:"next"`
	}

	_ = json.Unmarshal([]byte(body), &list) // not all responses have a next page

	return status, body, list.Next
}

func TestTheAPIServesTheShop(t *testing.T) {
	t.Parallel()

	s := apptest.Start(t)
	s.Seed()

	if err := s.Inventory.Seed(t.Context(), map[string]int64{`odd " name`: 2}); err != nil {
		t.Fatal(err)
	}

	first := s.Publish("orders.created", guide(t, "orders.created"))
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@home.example"}}`)
	s.WaitForOrder("order_123", "completed")
	s.Messages("notifications", 1)
	s.WaitUntilIdle()

	for _, c := range []struct {
		path   string
		status int
		says   string
	}{
		{"/orders/order_123", 200, `"status":"completed"`},
		{"/orders/order_123", 200, `"total_amount":99.99`},
		{"/orders/order_123", 200, `"type":"OrderPaid"`},
		{"/orders/nope", 404, "there is no order nope"},
		{"/orders/%00", 422, "path: contains the character U+0000"},
		{"/orders/a%2Fb%3F%25", 404, "there is no order a/b?%"},
		{"/orders/%2E%2E", 404, "there is no order .."},
		{"/notifications?user=alice", 200, `"channel"`},
		{"/notifications?user=bob", 200, `"items":[]`},
		{"/audit?only=stock,ledger", 200, `"violations":0`},
		{"/audit?only=stok", 404, "did you mean stock?"},
		{"/conversations/" + first.String(), 200, `"topic":"orders.created"`},
		{"/events?stream=order-order_123", 200, `"type":"OrderCompleted"`},
		{"/consumers", 200, `"consumer":"fulfilment.charge"`},
	} {
		if status, body, _ := ask(t, s, c.path); status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s: got %d, expected %d with %q: %s", c.path, status, c.status, c.says, body)
		}
	}

	var pages int

	for cursor := ""; ; pages++ {
		status, body, next := ask(t, s, "/stock?limit=1&cursor="+cursor)
		if status != 200 || strings.Count(body, "product_id") != 1 {
			t.Fatalf("page %d: %d %s", pages, status, body)
		}

		if cursor = next; cursor == "" {
			break
		}
	}

	if want := apptest.Value[int](s, `SELECT count(*) FROM stock`); pages+1 != want {
		t.Errorf("%d pages of one product, expected %d", pages+1, want)
	}
}
