"""Codes that corpora and judges use, as published.

- fasttext: fastText's lid.176, which has Wikipedia's codes.
- wili: WiLI-2018.
- flores: FLORES+; a code may end in a variety.
- nllb: the tokens of NLLB-200. With `arb_Latn` and `min_Arab`, and with `sat_Olck` in place of
  `sat_Beng`, they are the codes of FLORES-200.
- NAMES: English names that ISO 639 lacks, from CLDR's English locale or in common use.
"""

from __future__ import annotations

_LID176 = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co
cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi
hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li
lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no
oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su
sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
_WILI = """
ace afr als amh ang ara arg arz asm ast ava aym azb aze bak bar bcl be-tarask bel ben bho bjn bod
bos bpy bre bul bxr cat cbk cdo ceb ces che chr chv ckb cor cos crh csb cym dan deu diq div dsb
dty egl ell eng epo est eus ext fao fas fin fra frp fry fur gag gla gle glg glk glv grn guj hak
hat hau hbs heb hif hin hrv hsb hun hye ibo ido ile ilo ina ind isl ita jam jav jbo jpn kaa kab
kan kat kaz kbd khm kin kir koi kok kom kor krc ksh kur lad lao lat lav lez lij lim lin lit lmo
lrc ltg ltz lug lzh mai mal map-bms mar mdf mhr min mkd mlg mlt mon mri mrj msa mwl mya myv mzn
nan nap nav nci nds nds-nl nep new nld nno nob nrm nso oci olo ori orm oss pag pam pan pap pcd pdc
pfl pnb pol por pus que roa-tara roh ron rue rup rus sah san scn sco sgs sin slk slv sme sna snd
som spa sqi srd srn srp stq sun swa swe szl tam tat tcy tel tet tgk tgl tha ton tsn tuk tur tyv
udm uig ukr urd uzb vec vep vie vls vol vro war wln wol wuu xho xmf yid yor zea zh-yue zho
"""
_FLORES = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn als_Latn amh_Ethi apc_Arab_nort3139
apc_Arab_sout3123 arb_Arab arb_Latn arg_Latn ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva
ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab
bjn_Latn bod_Tibt bos_Latn brx_Deva bug_Latn bul_Cyrl cat_Latn cat_Latn_vale1252 ceb_Latn ces_Latn
chv_Cyrl cjk_Latn ckb_Arab cmn_Hans cmn_Hant crh_Latn cym_Latn dan_Latn dar_Cyrl deu_Latn dgo_Deva
dik_Latn dyu_Latn dzo_Tibt ekk_Latn ell_Grek eng_Latn epo_Latn eus_Latn ewe_Latn fao_Latn fij_Latn
fil_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gaz_Latn gla_Latn gle_Latn glg_Latn gom_Deva
gug_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn
ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kaa_Latn kab_Latn kac_Latn kam_Latn kan_Knda
kas_Arab kas_Deva kat_Geor kaz_Cyrl kbp_Latn kea_Latn khk_Cyrl khk_Mong khm_Khmr kik_Latn kin_Latn
kir_Cyrl kjh_Cyrl kmb_Latn kmr_Latn knc_Arab knc_Latn kor_Hang ktu_Latn lao_Laoo lij_Latn lim_Latn
lin_Latn lit_Latn lld_Latn lld_Latn_gard1241 lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn
lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva mfe_Latn mhr_Cyrl min_Arab min_Latn mkd_Cyrl
mlt_Latn mni_Beng mni_Mtei mos_Latn mri_Latn mya_Mymr myv_Cyrl nld_Latn nno_Latn nob_Latn
nob_Latn_radical npi_Deva nqo_Nkoo nso_Latn nus_Latn nya_Latn oci_Latn oci_Latn_aran1260 ory_Orya
pag_Latn pan_Guru pap_Latn pbt_Arab pes_Arab plt_Latn pol_Latn por_Latn prs_Arab quy_Latn ron_Latn
run_Latn rus_Cyrl sag_Latn san_Deva sat_Olck scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn
sna_Latn snd_Arab snd_Deva som_Latn sot_Latn spa_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn
swh_Latn szl_Latn tam_Taml taq_Latn taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl tha_Thai tir_Ethi tpi_Latn
tsn_Latn tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn_akua1239 twi_Latn_asan1239 tyv_Cyrl uig_Arab
ukr_Cyrl umb_Latn urd_Arab uzn_Latn uzs_Arab vec_Latn vie_Latn vmw_Latn war_Latn wol_Latn wuu_Hans
xho_Latn ydd_Hebr yor_Latn yue_Hant zgh_Tfng zsm_Latn zul_Latn
"""
_NLLB = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn als_Latn amh_Ethi apc_Arab
arb_Arab ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl
bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn
bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn
dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn fij_Latn fin_Latn
fon_Latn fra_Latn fur_Latn fuv_Latn gaz_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn
hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn
ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor kaz_Cyrl
kbp_Latn kea_Latn khk_Cyrl khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kmr_Latn knc_Arab knc_Latn
kon_Latn kor_Hang lao_Laoo lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn
lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl mlt_Latn
mni_Beng mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn nya_Latn
oci_Latn ory_Orya pag_Latn pan_Guru pap_Latn pbt_Arab pes_Arab plt_Latn pol_Latn por_Latn prs_Arab
quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn
slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn
swe_Latn swh_Latn szl_Latn tam_Taml taq_Latn taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai
tir_Ethi tpi_Latn tsn_Latn tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl
umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant
zho_Hans zho_Hant zsm_Latn zul_Latn
"""
NAMES = {
    "azeri": "az",
    "bangla": "bn",
    "bokmal": "nb",
    "byelorussian": "be",
    "cambodian": "km",
    "cantonese": "yue",
    "farsi": "fa",
    "hakka": "hak",
    "hokkien": "nan",
    "isixhosa": "xh",
    "isizulu": "zu",
    "kurmanji": "kmr",
    "laotian": "lo",
    "mandarin": "cmn",
    "modern standard arabic": "arb",
    "myanmar": "my",
    "norwegian bokmal": "nb",
    "sesotho": "st",
    "setswana": "tn",
    "simplified chinese": "zh-Hans",
    "slovene": "sl",
    "sorani": "ckb",
    "traditional chinese": "zh-Hant",
    "west frisian": "fy",
}
PUBLISHED = {  # system -> its codes
    "flores": _FLORES.split(),
    "nllb": _NLLB.split(),
    "wili": _WILI.split(),
    "fasttext": _LID176.split(),
}
