package fulfilment_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
)

var update = flag.Bool("update", false, "write the golden files")

func TestWireFormat(t *testing.T) {
	t.Parallel()

	two, one := int64(2), int64(1)
	amount := money.MustParse("99.99")

	for name, payload := range map[string]event.Payload{
		"orders.created.v1":       fulfilment.OrderCreated{Order: fulfilment.NewOrder{ID: "order_123", ProductID: "product_1", Quantity: &two, TotalAmount: &amount}},
		"orders.created.items.v1": fulfilment.OrderCreated{Order: fulfilment.NewOrder{ID: "order_124", Items: []fulfilment.Item{{"product_1", &two}, {"product_2", &one}}, TotalAmount: &amount, Currency: "EUR"}},
		"payments.requested.v1":   fulfilment.PaymentRequested{OrderID: "order_123", Amount: &amount, Currency: "USD"},
		"orders.completed.v1":     fulfilment.OrderCompleted{OrderID: "order_123"},
		"orders.rejected.v1":      fulfilment.OrderRejected{OrderID: "order_123", Reason: order.StatusPaymentFailed, Detail: "card declined"},

		"payments.requested.attempt.v1": fulfilment.PaymentRequested{OrderID: "order_123", Amount: &amount, Currency: "USD", Attempt: 2},
		"payments.refund.requested.v1":  fulfilment.RefundRequested{OrderID: "order_123", TransactionID: "txn_1", Amount: &amount, Currency: "USD", Reason: order.StatusCancelled},
		"payments.refunded.v1":          fulfilment.PaymentRefunded{OrderID: "order_123", TransactionID: "txn_1", RefundID: "ref_1", Amount: &amount, Currency: "USD"},
		"payments.refund.failed.v1":     fulfilment.RefundFailed{OrderID: "order_123", TransactionID: "txn_1", RefundID: "ref_1", Reason: "account closed", Amount: &amount, Currency: "USD"},
		"payments.reported.v1":          payment.Reported{OrderID: "order_123", Outcome: payment.ReportCaptured, TransactionID: "txn_1", Amount: &amount, Currency: "USD"},
		"orders.cancel.requested.v1":    fulfilment.CancelRequested{OrderID: "order_123", Reason: "changed my mind"},
		"orders.cancel.refused.v1":      fulfilment.CancelRefused{OrderID: "order_123", Reason: order.StatusCompleted},
		"orders.cancelled.v1":           fulfilment.OrderCancelled{OrderID: "order_123", Reason: "changed my mind"},
		"orders.expiry.due.v1":          fulfilment.ExpiryDue{OrderID: "order_123"},
		"orders.expired.v1":             fulfilment.OrderExpired{OrderID: "order_123"},
		"inventory.restocked.v1":        inventory.Restocked{ProductID: "product_1", Quantity: &two},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			data, err := event.Encode(payload)
			if err != nil {
				t.Fatal(err)
			}

			var pretty bytes.Buffer
			if err := json.Indent(&pretty, data, "", "  "); err != nil {
				t.Fatal(err)
			}

			golden(t, name+".json", pretty.String()+"\n")
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()

	path := filepath.Join("testdata", "events", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run the test with -update", err)
	}

	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func TestTheGuidesMessagesAreAccepted(t *testing.T) {
	t.Parallel()

	if _, err := event.Decode[fulfilment.OrderCreated]([]byte(`{"order": {"id": "order_123", "product_id": "product_1", "quantity": 2, "total_amount": 99.99}}`)); err != nil {
		t.Error(err)
	}

	if _, err := event.Decode[fulfilment.PaymentRequested]([]byte(`{"order_id": "order_123", "amount": 99.99}`)); err != nil {
		t.Error(err)
	}
}

func TestBadOrdersNameTheField(t *testing.T) {
	t.Parallel()

	for body, says := range map[string]string{
		`{}`:             "order.id: is missing",
		`{"order":null}`: "order.id: is missing",
		`{"order":{"id":"o","quantity":1,"total_amount":1}}`:                                                                 "order.product_id: is missing",
		`{"order":{"id":"o","product_id":"p","total_amount":1}}`:                                                             "order.quantity: is missing",
		`{"order":{"id":"o","product_id":"p","quantity":1}}`:                                                                 "order.total_amount: is missing",
		`{"order":{"id":"o","product_id":"p","quantity":0,"total_amount":1}}`:                                                "order.quantity: is 0",
		`{"order":{"id":"o","product_id":"p","quantity":-5,"total_amount":1}}`:                                               "order.quantity: is -5",
		`{"order":{"id":"o","product_id":"p","quantity":99999999999,"total_amount":1}}`:                                      "order.quantity: is 99999999999",
		`{"order":{"id":"o","product_id":"p","quantity":1e99,"total_amount":1}}`:                                             "order.quantity: ",
		`{"order":{"id":"o","product_id":"p","quantity":"1","total_amount":1}}`:                                              "order.quantity: is a JSON string, expected a whole number",
		`{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":-1}}`:                                               "order.total_amount: is -1",
		`{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":"NaN"}}`:                                            "order.total_amount: is \"NaN\"",
		`{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1e999999999}}`:                                      "order.total_amount: is \"1e999999999\"",
		`{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1.001}}`:                                            "order.total_amount: is 1.001",
		`{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1,"currency":"dollar"}}`:                            "order.currency: is \"dollar\"",
		`{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1,"currency":null}}`:                                "order.currency: is null, expected an ISO 4217 code",
		`{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1,"currency":""}}`:                                  "order.currency: is \"\", expected an ISO 4217 code",
		`{"order":{"id":"o","product_id":"p","quantity":1,"total_amount":1,"currency":"XXX"}}`:                               "order.currency: is \"XXX\"",
		`{"order":{"id":"o\u0000","product_id":"p","quantity":1,"total_amount":1}}`:                                          "order.id: is \"o\\x00\"",
		`{"order":{"id":"` + strings.Repeat("x", 201) + `","product_id":"p","quantity":1,"total_amount":1}}`:                 "order.id: has 201 bytes",
		`{"order":{"id":"o","items":[{"product_id":"p","quantity":1},{"quantity":1}],"total_amount":1}}`:                     "order.items[1].product_id: is missing",
		`{"order":{"id":"o","product_id":"p","quantity":1,"items":[{"product_id":"p","quantity":1}],"total_amount":1}}`:      "order.items: cannot be combined",
		`{"order":{"id":"o","items":[` + strings.Repeat(`{"product_id":"p","quantity":1},`, 1000) + `{}],"total_amount":1}}`: "order.items: has 1001 elements",
		`{"order":[1]}`: "order: is a JSON array, expected an object",
	} {
		if _, err := event.Decode[fulfilment.OrderCreated]([]byte(body)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.120s: got %v, expected %q", body, err, says)
		}
	}
}

func TestBadMessagesNameTheField(t *testing.T) {
	t.Parallel()

	for says, err := range map[string]error{
		"order_id: is missing":                  decoding[fulfilment.CancelRequested](`{}`),
		"reason: has 501 characters":            decoding[fulfilment.CancelRequested](`{"order_id":"o","reason":"` + strings.Repeat("x", 501) + `"}`),
		"reason: contains the character U+0000": decoding[fulfilment.CancelRequested](`{"order_id":"o","reason":"\u0000"}`),
		"attempt: is -1, expected 1 to 1000":    decoding[fulfilment.PaymentRequested](`{"order_id":"o","amount":1,"attempt":-1}`),
		"currency: is null, expected":           decoding[fulfilment.PaymentRequested](`{"order_id":"o","amount":1,"currency":null}`),
		`currency: is "", expected a code`:      decoding[fulfilment.RefundRequested](`{"order_id":"o","transaction_id":"t","amount":1,"currency":null}`),
		"transaction_id: is missing":            decoding[fulfilment.RefundRequested](`{"order_id":"o","amount":1,"currency":"USD"}`),
		"amount: is missing":                    decoding[fulfilment.RefundRequested](`{"order_id":"o","transaction_id":"t","currency":"USD"}`),
		"product_id: is missing":                decoding[inventory.Restocked](`{"quantity":1}`),
		"product_id: has 201 bytes":             decoding[inventory.Restocked](`{"quantity":1,"product_id":"` + strings.Repeat("x", 201) + `"}`),
		`product_id: is "\n"`:                   decoding[inventory.Restocked](`{"quantity":1,"product_id":"\n"}`),
		"quantity: is missing":                  decoding[inventory.Restocked](`{"product_id":"p"}`),
		"quantity: is 0, expected 1 to":         decoding[inventory.Restocked](`{"product_id":"p","quantity":0}`),
		"quantity: is a JSON string, expected":  decoding[inventory.Restocked](`{"product_id":"p","quantity":"1"}`),
	} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, expected %q", err, says)
		}
	}
}

func decoding[P event.Payload](body string) error {
	_, err := event.Decode[P]([]byte(body))

	return err
}

func FuzzOrderCreated(f *testing.F) {
	f.Add([]byte(`{"order":{"id":"o","items":[{"product_id":"p","quantity":1}],"total_amount":"1.5","currency":"EUR"}}`))
	f.Add([]byte(`{"order":{"id":"o","product_id":"p","quantity":2,"total_amount":99.99}}`))

	f.Fuzz(func(t *testing.T, data []byte) { roundTrip[fulfilment.OrderCreated](t, data) })
}

func FuzzPaymentRequested(f *testing.F) {
	f.Add([]byte(`{"order_id":"o","amount":99.99,"currency":"JPY"}`))

	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = event.Decode[fulfilment.PaymentRequested](data) })
}

func FuzzCancelRequested(f *testing.F) {
	f.Add([]byte(`{"order_id":"o","reason":"why"}`))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip[fulfilment.CancelRequested](t, data) })
}

func FuzzRefundRequested(f *testing.F) {
	f.Add([]byte(`{"order_id":"o","transaction_id":"t","amount":"1.5","currency":"EUR","reason":"cancelled"}`))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip[fulfilment.RefundRequested](t, data) })
}

func FuzzRestocked(f *testing.F) {
	f.Add([]byte(`{"product_id":"p","quantity":3}`))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip[inventory.Restocked](t, data) })
}

// roundTrip checks that an accepted payload can be encoded and is accepted again.
func roundTrip[P event.Payload](t *testing.T, data []byte) {
	t.Helper()

	payload, err := event.Decode[P](data)
	if err != nil {
		return
	}

	encoded, err := event.Encode(payload)
	if err != nil {
		t.Fatal(err)
	}

	if _, err := event.Decode[P](encoded); err != nil {
		t.Errorf("%s became %s: %v", data, encoded, err)
	}
}

// A currency may leave ISO 4217 after money has moved in it.
func TestMoneyThatHasMovedMayBeInARetiredCurrency(t *testing.T) {
	t.Parallel()

	amount := money.MustParse("99.99")

	for _, payload := range []event.Payload{
		payment.Reported{
			OrderID: "o", Outcome: payment.ReportRefundFailed, TransactionID: "t", RefundID: "r", Reason: "closed account", Amount: &amount, Currency: "HRK",
		},
		fulfilment.RefundRequested{OrderID: "o", TransactionID: "t", Amount: &amount, Currency: "HRK", Reason: order.StatusCancelled},
		fulfilment.PaymentRefunded{OrderID: "o", TransactionID: "t", RefundID: "r", Amount: &amount, Currency: "HRK"},
		fulfilment.RefundFailed{OrderID: "o", TransactionID: "t", RefundID: "r", Reason: "closed account", Amount: &amount, Currency: "HRK"},
	} {
		if err := payload.Validate(); err != nil {
			t.Errorf("%s: %v", payload.Topic(), err)
		}
	}
}
