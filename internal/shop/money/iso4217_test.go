package money_test

import (
	"encoding/csv"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/shop/money"
)

// listOne returns the decimal places of all codes of List One, or "" for a code that is
// not a currency.
func listOne(t *testing.T) map[string]string {
	t.Helper()

	file, err := os.Open("testdata/list-one.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	reader := csv.NewReader(file)
	reader.Comment = '#'

	records, err := reader.ReadAll()
	if err != nil || strings.Join(records[0], ",") != "code,number,minor_units,is_fund" {
		t.Fatalf("%v: %v", records[0], err)
	}

	list := map[string]string{}

	for _, r := range records[1:] {
		code, places, fund := r[0], r[2], r[3]
		if places == "N.A." || fund == "true" {
			places = ""
		}

		list[code] = places
	}

	if len(list) != 178 {
		t.Fatalf("List One has %d codes, expected 178", len(list))
	}

	return list
}

func TestTheTableIsListOne(t *testing.T) {
	t.Parallel()

	list := listOne(t)

	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			for c := 'A'; c <= 'Z'; c++ {
				code, got := string([]rune{a, b, c}), ""
				if places, known := money.Places(code); known {
					got = strconv.Itoa(int(places))
				}

				if got != list[code] {
					t.Errorf("%s has %q decimal places, expected %q", code, got, list[code])
				}
			}
		}
	}
}

func TestCurrencies(t *testing.T) {
	t.Parallel()

	for places, codes := range map[int32]string{
		0: "JPY KRW ISK VND XAF XOF XPF UGX",
		2: "USD EUR PKR COP IDR RSD ALL HUF LBP SLE VES VED MRU XCG ZWG STN BYN MGA",
		3: "BHD IQD JOD KWD LYD OMR TND",
		-1: "BOV CHE CHW CLF COU MXV USN UYI UYW XAD" + // funds
			" XAU XAG XPT XPD XBA XBB XBC XBD XDR XSU XUA XTS XXX" + // not currencies
			" BGN HRK DEM ITL ANG CUC SLL VEF ZWL MRO STD BYR" + // historic; BGN until the end of 2025
			" BTC USDC CNH GGP ZZZ usd Usd US USDD", // never in ISO 4217
	} {
		for code := range strings.FieldsSeq(codes) {
			got, known := money.Places(code)
			if known != (places >= 0) || known && got != places {
				t.Errorf("%s: got %d, %t, expected %d", code, got, known, places)
			}
		}
	}
}

func TestACurrencyIsAbsentOrGiven(t *testing.T) {
	t.Parallel()

	for in, want := range map[string]struct{ code, says string }{
		`{}`:                   {"USD", ""},
		`{"currency":"EUR"}`:   {"EUR", ""},
		`{"currency":null}`:    {"", "is null, expected an ISO 4217 code such as USD; omit the field to use USD"},
		`{"currency":""}`:      {"", `is "", expected an ISO 4217 code`},
		`{"currency":978}`:     {"", "is not a JSON string, expected an ISO 4217 code"},
		`{"currency":["EUR"]}`: {"", "is not a JSON string"},
	} {
		var message struct {
			Currency money.Currency `json:"currency"`
		}

		switch err := json.Unmarshal([]byte(in), &message); {
		case want.says == "" && (err != nil || message.Currency.Code() != want.code):
			t.Errorf("%s: got %s, %v, expected %s", in, message.Currency.Code(), err, want.code)
		case want.says != "" && (err == nil || !strings.Contains(err.Error(), want.says)):
			t.Errorf("%s: got %v, expected %s", in, err, want.says)
		}
	}
}
