package payment

import (
	"maps"
	"strings"
	"testing"

	"github.com/shopspring/decimal"

	"github.com/millracehq/millrace/internal/shop/money"
)

func TestMinorUnits(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		amount, currency string
		units            int64
		wrong            string
	}{
		{"99.99", "USD", 9999, ""},
		{"0.01", "EUR", 1, ""},
		{"500", "JPY", 500, ""},
		{"500.00", "JPY", 500, ""},
		{"500.5", "JPY", 0, "expected a multiple of 1"},
		{"1.005", "USD", 0, "expected a multiple of 0.01"},
		{"5.120", "KWD", 5120, ""},
		{"5.124", "KWD", 0, "expected a multiple of 0.01"},
		// No decimals in ISO 4217, hundredths at Stripe.
		{"5", "ISK", 500, ""},
		{"5", "UGX", 500, ""},
		{"5.5", "UGX", 0, "expected a multiple of 1"},
		// Printed without decimals, hundredths at Stripe: CLDR's tables would charge
		// a hundredth of the amount.
		{"150000", "IDR", 15000000, ""},
		{"150000", "COP", 15000000, ""},
		{"100", "ALL", 10000, ""},
		{"100", "HUF", 10000, ""},
		{"999999999999999999", "KWD", 0, "more than can be charged"},
		{"-1", "USD", -100, ""},
	} {
		units, err := minorUnits(money.MustParse(c.amount), c.currency)

		switch {
		case c.wrong != "":
			if err == nil || !strings.HasPrefix(err.Error(), "amount: is "+c.amount) || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s %s: got %d, %v", c.amount, c.currency, units, err)
			}
		case err != nil || units != c.units:
			t.Errorf("%s %s: got %d, %v, expected %d", c.amount, c.currency, units, err, c.units)
		default:
			if back, code := amountOf(units, strings.ToLower(c.currency)); code != c.currency || !back.Equal(money.MustParse(c.amount)) {
				t.Errorf("%s %s: converted back to %s %s", c.amount, c.currency, back, code)
			}
		}
	}
}

// An amount that package money accepts is charged exactly or refused: never rounded,
// and never off by a power of ten.
func TestMinorUnitsAgreeWithISO4217(t *testing.T) {
	t.Parallel()

	others := map[string][2]int32{} // decimal places in ISO 4217 and at Stripe, where they differ

	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			for c := 'A'; c <= 'Z'; c++ {
				code := string([]rune{a, b, c})

				places, known := money.Places(code)
				if !known {
					continue
				}

				if digits(code) != places {
					others[code] = [2]int32{places, digits(code)}
				}

				for _, amount := range []money.Amount{money.MustParse("1"), money.MustParse("1000"), {Decimal: decimal.New(1, -places)}, {Decimal: decimal.New(12345, -places)}} {
					units, err := minorUnits(amount, code)
					if back, _ := amountOf(units, code); err == nil && !back.Equal(amount) {
						t.Errorf("%s %s is charged as %s", amount, code, back)
					}

					if err != nil && amount.IsInteger() && amount.Equal(money.MustParse("1")) {
						t.Errorf("1 %s is refused: %v", code, err)
					}
				}
			}
		}
	}

	// Stripe charges neither IQD nor LYD, and counts MGA in whole units.
	want := map[string][2]int32{"ISK": {0, 2}, "UGX": {0, 2}, "MGA": {2, 0}, "IQD": {3, 2}, "LYD": {3, 2}}
	if !maps.Equal(others, want) {
		t.Errorf("the decimal places differ for %v, expected %v", others, want)
	}

	if _, err := minorUnits(money.MustParse("1.5"), "MGA"); err == nil {
		t.Error("half an ariary was charged")
	}

	if _, err := minorUnits(money.MustParse("1.234"), "IQD"); err == nil {
		t.Error("1.234 IQD was rounded")
	}
}
