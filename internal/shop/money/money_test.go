package money_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/shop/money"
)

func TestSpellingsOfAmounts(t *testing.T) {
	t.Parallel()

	for in, want := range map[string]string{ // JSON to what is stored
		`99.99`:    `99.99`,
		`0`:        `0`,
		`1.10`:     `1.1`,
		`1.00`:     `1`,
		`1e2`:      `100`,
		`1E+2`:     `100`,
		`25e-1`:    `2.5`,
		`-0`:       `0`,
		`-0.00`:    `0`,
		`-1`:       `-1`, // Check refuses it
		`"99.99"`:  `99.99`,
		`"1e2"`:    `100`,
		`"0.10"`:   `0.1`,
		`"007.50"`: `7.5`,
		`".5"`:     `0.5`, // as Oracle writes it
		`"5."`:     `5`,
		`"+5"`:     `5`,
		`"\u0039"`: `9`,
	} {
		var amount money.Amount

		if err := amount.UnmarshalJSON([]byte(in)); err != nil {
			t.Errorf("%s: got %v, expected %s", in, err, want)
		}

		if data, err := json.Marshal(amount); err != nil || string(data) != want {
			t.Errorf("%s became %s, %v, expected %s", in, data, err, want)
		}
	}
}

func TestWhatIsNoAmountIsRefused(t *testing.T) {
	t.Parallel()

	for in, says := range map[string]string{
		`""`:            `is "", expected a decimal number such as 99.99`,
		`" 5"`:          `expected a decimal number`,
		`"5 USD"`:       `expected a decimal number`,
		`"$5"`:          `expected a decimal number`,
		`"1,000.00"`:    `expected a decimal number`,
		`"10,50"`:       `is "10,50", expected a decimal number`,
		`"1_000"`:       `expected a decimal number`,
		`"0x10"`:        `expected a decimal number`,
		`"1/3"`:         `expected a decimal number`,
		`"."`:           `expected a decimal number`,
		`"--1"`:         `expected a decimal number`,
		`"1.2.3"`:       `expected a decimal number`,
		`"NaN"`:         `expected a decimal number`,
		`"Infinity"`:    `expected a decimal number`,
		`"ten"`:         `expected a decimal number`,
		`"\u0661"`:      `expected a decimal number`, // an Arabic digit
		`"5\u0000"`:     `is "5\x00", expected a decimal number`,
		`true`:          `expected a decimal number`,
		`[5]`:           `expected a decimal number`,
		`{"value":5}`:   `expected a decimal number`,
		`1e1000000000`:  `is "1e1000000000", expected a decimal number`,
		`1e-1000000000`: `expected a decimal number`, `1e19`: `is 1e19, out of range`, `1e-41`: `is 1e-41, out of range`,
		`"1e99999999999"`:       `expected a decimal number`,
		strings.Repeat("9", 50): `has 50 characters, expected a decimal number of at most 40`,
	} {
		var amount money.Amount

		if err := amount.UnmarshalJSON([]byte(in)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, expected %q", in, err, says)
		}
	}
}

func TestCheckDependsOnTheCurrency(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ amount, currency, says string }{
		{"99.99", "USD", ""},
		{"100", "JPY", ""},
		{"1.234", "KWD", ""},
		{"1.234", "IQD", ""},
		{"1.23", "PKR", ""},
		{"1.23", "COP", ""},
		{"1.23", "IDR", ""},
		{"1.23", "RSD", ""},
		{"0", "EUR", ""},
		{"99.999", "USD", "total: is 99.999, expected at most 2 decimal places in USD"},
		{"0.5", "JPY", "at most 0 decimal places"},
		{"-1", "USD", "total: is -1, expected 0 or more"},
		{"1e18", "USD", "expected less than 10^18"},
		{"1", "", `currency: is "", expected an ISO 4217 code`},
		{"1", "usd", `currency: is "usd", expected an ISO 4217 code such as USD`},
		{"1", "ZZZ", `currency: is "ZZZ"`},
	} {
		amount := money.MustParse(c.amount)
		err := money.Check("total", &amount, c.currency)

		if (err == nil) != (c.says == "") || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s %s: got %v, expected %q", c.amount, c.currency, err, c.says)
		}
	}

	if err := money.Check("total", nil, "USD"); err == nil || !strings.Contains(err.Error(), "total: is missing") {
		t.Errorf("missing: %v", err)
	}

	one := money.MustParse("1")
	if err := money.Check("order.total", &one, "ZZZ"); err == nil || !strings.HasPrefix(err.Error(), "order.currency: ") {
		t.Errorf("in an object: %v", err)
	}
}

// An order may be paid in the last days of a currency and refunded afterwards.
func TestMovedMoneyMayBeInACurrencyThatHasLeftTheList(t *testing.T) {
	t.Parallel()

	for code, refused := range map[string]bool{"USD": false, "BGN": false, "HRK": false, "": true, "usd": true, "US": true, "USDX": true, "U\x00D": true} {
		amount := money.MustParse("1.5")

		err := money.CheckMoved("amount", &amount, code)
		if (err != nil) != refused || err != nil && !strings.HasPrefix(err.Error(), "currency: is ") {
			t.Errorf("%q: %v", code, err)
		}
	}

	fine := money.MustParse("0.5")
	if err := money.CheckMoved("amount", &fine, "JPY"); err == nil {
		t.Error("half a yen was accepted")
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"99.99", "1e5", "-0", ".5", "1e-40"} {
		f.Add(seed)
	}

	f.Fuzz(func(t *testing.T, text string) {
		amount, err := money.Parse(text)
		if err != nil {
			return
		}

		again, err := money.Parse(amount.String())
		if err == nil && !again.Equal(amount) {
			t.Errorf("%q became %s and then %s", text, amount, again)
		}

		if len(amount.String()) > 200 {
			t.Errorf("%q became %d characters", text, len(amount.String()))
		}
	})
}
