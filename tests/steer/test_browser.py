"""The page in a real browser, where one is installed."""

import json
import re
import shutil

import pytest
from conftest import encoded, picture
from fake_predictor import FakePredictor
from PIL import Image

from mmvars.steer.images import ImageFolder
from mmvars.steer.server import Limits, make_app

pytest.importorskip('uvicorn')
sync_api = pytest.importorskip('playwright.sync_api')
expect = sync_api.expect

pytestmark = pytest.mark.slow

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


@pytest.fixture(scope='module')
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f'no browser is installed ({", ".join(BROWSERS)})')
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, since tests may run as root; the page is our own.
        browser = playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser, address):
    """Opens the page as another person, and sees that nothing in it fails."""
    contexts, errors = [], []

    def opened(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on('pageerror', lambda error: errors.append(str(error)))
        page.on('console', lambda line: errors.append(line.text) if line.type == 'error' else None)
        page.goto(f'http://127.0.0.1:{address[1]}/')
        expect(page.locator('#status')).to_contain_text('48 × 32 pixels')
        return page

    yield opened
    for context in contexts:
        context.close()
    # Refusals of the server are lines of the console too; the page is there to say them.
    assert not [text for text in errors if not text.startswith('Failed to load resource')]


def saved(page, button: str):
    with page.expect_download() as download:
        page.get_by_role('button', name=button).click()
    return download.value


def prompt_is(page, text: str) -> None:
    expect(page.locator('#prompt')).to_have_text(text)
    expect(page.locator('#frame')).not_to_have_class('busy')


def click(page, x: float, y: float, **options) -> None:
    box = page.locator('#stage').bounding_box()
    page.locator('#stage').click(
        position={'x': x * box['width'], 'y': y * box['height']}, **options
    )


def test_click_slide_class_undo_save(new_page) -> None:
    page = new_page()
    history = page.locator('#history button')
    expect(history).to_have_count(1)
    click(page, 0.25, 0.5)
    prompt_is(page, '1 place')
    expect(page.locator('#status')).to_contain_text('most is gained by dog')
    click(page, 0.75, 0.5, modifiers=['Shift'])
    prompt_is(page, '1 place, not 1')

    with_prompt = json.loads(saved(page, 'Save JSON').path().read_text())
    assert with_prompt['image'] == 'a b.png'
    assert with_prompt['prior']['labels'] == [1, 0]
    assert with_prompt['prior']['points'][0] == pytest.approx([12, 16], abs=0.5)
    assert with_prompt['alpha'] == 2
    assert len(with_prompt['vector']) == 3
    assert [row['name'] for row in with_prompt['classes']] == list(FakePredictor.classes)
    assert with_prompt['classes'][1]['shift'] > 0.01
    download = saved(page, 'Save picture')
    assert download.suggested_filename == 'a b_steer.png'
    grid = Image.open(download.path())
    assert grid.width > 3 * 480
    assert len(grid.convert('RGB').getcolors(1_000_000)) > 1000

    slider = page.locator('#alpha')
    slider.fill('0')
    expect(page.locator('#alpha-value')).to_have_text('0, off')
    slider.dispatch_event('change')
    expect(page.locator('#status')).to_contain_text('no class gains')
    slider.dispatch_event('change')  # what is shown already is no other prompt
    page.locator('#alpha-own').click()
    expect(page.locator('#alpha-value')).to_have_text('2, the model’s own')

    page.get_by_label('Class', exact=True).select_option('car')
    prompt_is(page, 'car')
    expect(page.locator('#status')).to_contain_text('most is gained by car')
    page.get_by_label('Words').fill('a dog')
    page.get_by_role('button', name='Ask', exact=True).click()
    prompt_is(page, '“a dog”')

    page.get_by_role('button', name='Undo').click()
    prompt_is(page, 'car')
    page.get_by_role('button', name='Redo').click()
    prompt_is(page, '“a dog”')
    expect(history).to_have_count(7)
    history.nth(1).click()
    prompt_is(page, '1 place')
    page.get_by_role('button', name='Clear').click()
    prompt_is(page, 'none: the network as it is')
    expect(history).to_have_count(8)  # what came after the recalled one is kept


def test_box_and_kept_prompt(new_page) -> None:
    page = new_page()
    page.locator('#tools').get_by_text('Box').click()
    box = page.locator('#stage').bounding_box()
    page.mouse.move(box['x'] + 0.1 * box['width'], box['y'] + 0.1 * box['height'])
    page.mouse.down()
    page.mouse.move(box['x'] + 0.5 * box['width'], box['y'] + 0.6 * box['height'], steps=3)
    page.mouse.up()
    prompt_is(page, 'box')
    corners = json.loads(saved(page, 'Save JSON').path().read_text())['prior']['box']
    assert corners == pytest.approx([4.8, 3.2, 24, 19.2], abs=0.2)
    page.get_by_label('Keep the prompt').check()
    page.get_by_role('button', name='more/c.jpg').click()
    prompt_is(page, 'like the box in a b.png')


def test_keyboard_alone(new_page) -> None:
    page = new_page()
    press = page.keyboard.press
    press('Tab')
    expect(page.locator('.skip')).to_be_focused()
    press('Enter')
    expect(page.locator('#stage')).to_be_focused()
    for key in ('ArrowLeft', 'ArrowUp', 'Enter'):
        press(key)
    prompt_is(page, '1 place')
    for key in ('Shift+ArrowRight', 'Shift+ArrowRight', 'Shift+ArrowRight', 'Shift+Enter'):
        press(key)
    prompt_is(page, '1 place, not 1')
    press('Enter')  # on a mark: removes it
    prompt_is(page, '1 place')
    for key in ('b', 'Shift+ArrowDown', 'Shift+ArrowLeft', 'Shift+ArrowLeft', 'b'):
        press(key)
    prompt_is(page, 'box')
    for number, name in enumerate(('input', 'bottom_up', 'token_weights', 'heatmap'), 1):
        press(str(number))
        expect(page.locator(f'#panel-{name}')).to_have_attribute('aria-pressed', 'true')
    press(']')
    expect(page.locator('#alpha-value')).to_have_text('2.3')
    press('Control+z')
    expect(page.locator('#alpha-value')).to_have_text('2, the model’s own')
    press('Control+Shift+Z')
    expect(page.locator('#alpha-value')).to_have_text('2.3')
    with page.expect_download():
        press('j')
    with page.expect_download():
        press('s')
    press('Escape')
    prompt_is(page, 'none: the network as it is')
    press('?')
    expect(page.get_by_role('dialog', name='Keyboard')).to_be_visible()
    press('Escape')
    expect(page.get_by_role('dialog')).to_have_count(0)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone(new_page, scheme) -> None:
    width = 360
    page = new_page(
        viewport={'width': width, 'height': 740},
        is_mobile=True,
        has_touch=True,
        color_scheme=scheme,
    )
    edges = []
    for section in page.locator('main > section').all():
        box = section.bounding_box()
        edges.append((box['x'], box['x'] + box['width']))
    assert len(set(edges)) == 1  # one column
    assert 0 <= edges[0][0]
    assert edges[0][1] <= width
    for button in page.locator('button:visible, .button:visible').all():
        box = button.bounding_box()
        assert box['height'] >= 28, button.inner_text()
    box = page.locator('#stage').bounding_box()
    page.touchscreen.tap(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2)
    prompt_is(page, '1 place')
    page.locator('#tools').get_by_text('Not this').tap()
    page.touchscreen.tap(box['x'] + 9, box['y'] + 9)
    prompt_is(page, '1 place, not 1')
    back = page.locator('body').evaluate_handle('node => getComputedStyle(node).backgroundColor')
    red = int(re.match(r'rgb\((\d+)', back.json_value())[1])
    assert red < 60 if scheme == 'dark' else red > 200


def test_upload_and_what_is_wrong_with_it(new_page, tmp_path) -> None:
    page = new_page()
    field = page.locator('#upload')
    field.set_input_files(
        {'name': 'new.png', 'mimeType': 'image/png', 'buffer': encoded(picture(size=(64, 40)))}
    )
    expect(page.locator('#status')).to_contain_text('new.png, 64 × 40 pixels')
    field.set_input_files({'name': 'bad.png', 'mimeType': 'image/png', 'buffer': b'no image'})
    expect(page.locator('#status')).to_contain_text('cannot be decoded')
    field.set_input_files({'name': 'big.png', 'mimeType': 'image/png', 'buffer': bytes(400_000)})
    expect(page.locator('#status')).to_contain_text('larger than')
    click(page, 0.5, 0.5)  # the image before is still there
    prompt_is(page, '1 place')
    page.locator('#history button').first.click()  # another image than the server holds
    click(page, 0.3, 0.5)
    prompt_is(page, '1 place')
    saved_image = json.loads(saved(page, 'Save JSON').path().read_text())
    assert saved_image['image'] == 'a b.png'


def test_who_was_forgotten_is_told_and_goes_on(new_page) -> None:
    page = new_page()
    click(page, 0.25, 0.5)
    prompt_is(page, '1 place')
    for _ in range(8):  # as many as the server keeps
        new_page()
    click(page, 0.75, 0.5)
    notice = page.get_by_role('alert')
    expect(notice).to_contain_text('no longer in memory')
    prompt_is(page, '1 place')  # nothing is lost
    notice.get_by_role('button').click()
    prompt_is(page, '2 places')
    expect(notice).to_be_hidden()
    expect(page.locator('#history button')).to_have_count(3)


class TestOfClasses:
    @pytest.fixture
    def app(self, images):
        predictor = FakePredictor(scales_without_prior=False)
        return make_app(predictor, ImageFolder(str(images)), limits=Limits())

    def test_without_a_prompt_there_is_nothing_to_scale(self, new_page) -> None:
        page = new_page()
        slider = page.locator('#alpha')
        expect(slider).to_be_disabled()
        click(page, 0.5, 0.5)
        prompt_is(page, '1 place')
        expect(slider).to_be_enabled()
        slider.fill('1')
        slider.dispatch_event('change')
        expect(page.locator('#alpha-value')).to_have_text('1')
        click(page, 0.5, 0.5)  # removes it
        prompt_is(page, 'none: the network as it is')
        expect(slider).to_be_disabled()


class TestPlain:
    @pytest.fixture
    def app(self, images):
        return make_app(FakePredictor(False), ImageFolder(str(images)), limits=Limits())

    def test_a_model_without_prompts(self, new_page) -> None:
        page = new_page()
        expect(page.get_by_role('alert')).to_contain_text('cannot be steered')
        expect(page.locator('#steer')).to_be_hidden()
        expect(page.locator('#panel-labels')).to_be_enabled()
        expect(page.locator('#classes tr')).to_have_count(1)
