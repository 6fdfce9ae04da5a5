package fulfilment_test

import (
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// A process is frozen before its charge leaves. Meanwhile the order is cancelled, and the
// redelivered request finds no charge. Nothing asks the provider again.
func TestAChargeThatLeavesAfterItsRedeliveryIsKnownFromItsReportAlone(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	s.process = fulfilment.NewProcess(fulfilment.DefaultConfig(), s.orders, s.stock, newGateway(), s.undelivered)
	frozen := s.placed(t, "o")

	cancel := []event.Event[fulfilment.CancelRequested]{{Payload: fulfilment.CancelRequested{OrderID: "o"}}}
	if verdicts, err := s.process.AdmitCancel(t.Context(), s.pool, cancel); err != nil || verdicts[0] != nil {
		t.Fatal(verdicts, err)
	}

	found, err := s.process.FindForCancel(t.Context(), cancel[0])
	if err != nil {
		t.Fatal(err)
	}

	if _, err := run(s, s.process.Cancel, event.Effected[fulfilment.CancelRequested, payment.Outcome]{Event: cancel[0], Result: &found}); err != nil {
		t.Fatal(err)
	}

	again := []event.Event[fulfilment.PaymentRequested]{frozen}
	if verdicts, err := s.process.Admit(t.Context(), s.pool, again); err != nil || verdicts[0] != nil {
		t.Fatal(verdicts, err)
	}

	if out, err := s.pay(event.Outgoing{Meta: again[0].Meta, Payload: again[0].Payload}); err != nil || len(out) > 0 {
		t.Fatalf("the redelivery: %v, %v", out, err)
	}

	charged, err := s.process.Charge(t.Context(), frozen) // the process ends before it can record the answer
	if err != nil || !charged.Captured() {
		t.Fatalf("got %+v, %v", charged, err)
	}

	s.unswept(t)
	s.age(t, "1 hour", "o")
	s.sweep(t, time.Minute)
	expect(t, s.due(t), "")
	expect(t, s.status("o"), "cancelled v3: OrderCreated InventoryReserved OrderCancelled")

	amount := money.MustParse("10")

	out, err := run(s, s.process.Report, event.Event[payment.Reported]{Payload: payment.Reported{
		OrderID: "o", Outcome: payment.ReportCaptured, TransactionID: charged.TransactionID, Amount: &amount, Currency: "USD",
	}})
	if err != nil || len(out) != 1 || out[0].Payload.Topic() != fulfilment.TopicRefundRequested {
		t.Errorf("after the webhook: %v, %v", out, err)
	}
}

// A person has refunded a capture in two parts. The newest is recorded, and the report
// that the other one has failed changes nothing.
func TestOfARefundInPartsOnlyTheNewestCanFail(t *testing.T) {
	t.Parallel()

	o := after(t, "place; captured; cancel; refunded by hand") // s is the newest part
	expect(t, render(fulfilment.Decide(o, fulfilment.FailRefund{TransactionID: "t", RefundID: "r", Reason: "lost card"})), "-> cancelled")
	expect(t, render(fulfilment.Decide(o, fulfilment.FailRefund{TransactionID: "t", RefundID: "s", Reason: "lost card"})),
		"PaymentRefundFailed -> cancelled refund t of 10 USD (cancelled) after s ! payments.refund.failed")
}
